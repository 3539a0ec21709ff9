// Helm, and a Helm that stays: called with `serve` it renders one request after the other without starting again.
//
// Called with any other arguments it is `helm`: main does what Helm's own cmd/helm does. See serve.go for what `serve` speaks.
package main

import (
	"errors"
	"io"
	"log/slog"
	"os"

	helmcmd "helm.sh/helm/v4/pkg/cmd"
	"helm.sh/helm/v4/pkg/kube"

	// As cmd/helm does: client authentication plugins.
	_ "k8s.io/client-go/plugin/pkg/client/auth"
)

func main() {
	// As cmd/helm does, so that the manager of fields does not follow the name of this program.
	kube.ManagedFieldsManager = "helm"
	if len(os.Args) == 2 && os.Args[1] == "serve" {
		if err := serve(); err != nil {
			slog.Error("cannot serve", slog.Any("error", err))
			os.Exit(1)
		}
		return
	}
	os.Exit(helm(os.Stdout, os.Args[1:]))
}

// helm runs one command and returns its exit status, as the main function of cmd/helm.
func helm(out io.Writer, arguments []string) int {
	command, err := helmcmd.NewRootCmd(out, arguments, helmcmd.SetupLogging)
	if err != nil {
		slog.Warn("command failed", slog.Any("error", err))
		return 1
	}
	command.SetArgs(arguments)
	if err := command.Execute(); err != nil {
		var coded helmcmd.CommandError
		if errors.As(err, &coded) {
			return coded.ExitCode
		}
		return 1
	}
	return 0
}
