package main

import (
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
	_ "unsafe" // for go:linkname

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"helm.sh/helm/v4/pkg/cli"
)

// What Helm and its libraries keep in package variables from one command to the next, because a process runs one command only.
// go.mod pins the versions that these belong to; fits and the tests tell when a newer version keeps something elsewhere.

// The defaults of flags follow this, and it is read from the environment once.
//
//go:linkname settings helm.sh/helm/v4/pkg/cmd.settings
var settings *cli.EnvSettings

// A warning is told once for each URN of a schema.
//
//go:linkname warnedURNs helm.sh/helm/v4/pkg/chart/common/util.warnedURNs
var warnedURNs sync.Map

// Each root command adds one, and all of them run before each command.
//
//go:linkname initializers github.com/spf13/cobra.initializers
var initializers []func()

// Each root command adds its flags, which keep it in memory.
//
//go:linkname completions github.com/spf13/cobra.flagCompletionFunctions
var completions map[*pflag.Flag]cobra.CompletionFunc

// fits tells whether the variables above are Helm's own.
func fits() error {
	if settings == nil || completions == nil {
		return errors.New("this version of Helm keeps its state elsewhere")
	}
	return nil
}

// forget puts everything as it is in a new process with the environment of this one.
func forget() {
	settings = cli.New()
	warnedURNs.Clear()
	initializers = nil
	clear(completions)
}

// endWaiting ends the goroutine of each command that waits for a signal to cancel its release: they would gather. Each gets its
// signal, and what it writes then goes to an output that is closed.
func endWaiting() error {
	own := make(chan os.Signal, 1)
	signal.Notify(own, os.Interrupt)
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		return err
	}
	<-own
	signal.Reset()
	return nil
}
