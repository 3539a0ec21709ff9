package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A message is the length of a JSON text, as four bytes with the highest first, and that text. On standard input come requests, on
// standard output go a hello and then one answer for each request, which is followed by the bytes of standard output and of standard
// error that its text counts. One request at a time. The end of the input ends the worker, also in the middle of a request; whatever
// else goes wrong ends it too, and whoever sent the request runs it as a process, in a sandbox of the same kind.

// protocol is raised when messages change their meaning.
const protocol = 2

// maxRequest is the longest text of a request, in bytes.
const maxRequest = 64 << 20

// idle is how long a worker waits before it gives memory back.
const idle = time.Second

// manyWaiting is after how many commands those are ended that wait for a signal: it takes half as long as a small chart.
const manyWaiting = 64

type hello struct {
	Protocol int `json:"helm_worker"`
	// Without network and without other programs?
	Confined bool `json:"confined"`
}

type request struct {
	Arguments []string `json:"arguments"`
	Directory string   `json:"directory"`
	// All of the environment, each as NAME=value.
	Environment []string `json:"environment"`
	// Milliseconds after which the worker ends itself.
	Deadline int64 `json:"deadline_ms"`
	// Longest standard output, in bytes.
	MaxStdout int64 `json:"max_stdout"`
	// Standard error that is sent, in bytes; more is cut off.
	MaxStderr int64 `json:"max_stderr"`
}

type answer struct {
	Status int   `json:"status"`
	Stdout int64 `json:"stdout"`
	Stderr int64 `json:"stderr"`
	// Was standard output longer than permitted? Then none is sent.
	TooLong bool `json:"too_long"`
}

// serve answers requests until the end of standard input.
func serve() error {
	if err := fits(); err != nil {
		return err
	}
	in, out, err := takeStreams()
	if err != nil {
		return err
	}
	confined := confine() == nil
	requests := make(chan request)
	go func() {
		for {
			request, err := read(in)
			if errors.Is(err, io.EOF) {
				os.Exit(0)
			} else if err != nil {
				os.Exit(1)
			}
			requests <- request
		}
	}()
	if err := write(out, hello{Protocol: protocol, Confined: confined}); err != nil {
		return err
	}
	rest := time.NewTimer(idle)
	for waiting := 0; ; {
		select {
		case request := <-requests:
			if err := request.answer(out); err != nil {
				return err
			}
			rest.Reset(idle)
			if waiting++; waiting < manyWaiting {
				continue
			}
		case <-rest.C:
			debug.FreeOSMemory()
		}
		if err := endWaiting(); err != nil {
			return err
		}
		waiting = 0
	}
}

// takeStreams keeps standard input and output for messages. In their place Helm finds nothing to read, and files in memory to write to.
func takeStreams() (in, out *os.File, err error) {
	files := [2]*os.File{}
	for number := range files {
		kept, err := unix.FcntlInt(uintptr(number), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil, nil, err
		}
		files[number] = os.NewFile(uintptr(kept), "messages")
	}
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.Dup3(null, 0, 0); err != nil {
		return nil, nil, err
	}
	for number, name := range map[int]string{1: "stdout", 2: "stderr"} {
		file, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
		if err != nil {
			return nil, nil, err
		}
		if err := unix.Dup3(file, number, 0); err != nil {
			return nil, nil, err
		}
	}
	return files[0], files[1], nil
}

// answer runs the command as a new process would and sends what it gave.
func (r request) answer(to io.Writer) error {
	timer := time.AfterFunc(time.Duration(r.Deadline)*time.Millisecond, func() { os.Exit(1) })
	defer timer.Stop()
	if len(r.Arguments) == 0 || r.Arguments[0] != "template" {
		return errors.New("only `template` is served")
	}
	os.Clearenv()
	for _, variable := range r.Environment {
		name, value, _ := strings.Cut(variable, "=")
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	if err := os.Chdir(r.Directory); err != nil {
		return err
	}
	forget()
	out := &output{left: r.MaxStdout}
	status := helm(out, r.Arguments)
	out.close()
	// Whoever removes the directory shall find it unused.
	if err := os.Chdir("/"); err != nil {
		return err
	}
	stdout, err := written(os.Stdout)
	if err != nil {
		return err
	}
	stderr, err := written(os.Stderr)
	if err != nil {
		return err
	}
	answer := answer{Status: status, Stdout: stdout, Stderr: min(stderr, r.MaxStderr)}
	if out.left < 0 || stdout > r.MaxStdout {
		answer.TooLong, answer.Stdout = true, 0
	}
	if err := write(to, answer); err != nil {
		return err
	}
	return errors.Join(move(os.Stdout, answer.Stdout, to), move(os.Stderr, answer.Stderr, to))
}

// output is what Helm writes to as long as its command runs, up to a bound.
type output struct {
	lock   sync.Mutex
	closed bool
	// Negative when too much was written.
	left int64
}

func (o *output) Write(bytes []byte) (int, error) {
	o.lock.Lock()
	defer o.lock.Unlock()
	if o.closed || o.left < 0 {
		return len(bytes), nil
	}
	if o.left -= int64(len(bytes)); o.left < 0 {
		return len(bytes), nil
	}
	return os.Stdout.Write(bytes)
}

func (o *output) close() {
	o.lock.Lock()
	defer o.lock.Unlock()
	o.closed = true
}

// written is the length of a file that was written from its start.
func written(file *os.File) (int64, error) {
	return file.Seek(0, io.SeekEnd)
}

// move sends the first bytes of a file and empties it.
func move(file *os.File, length int64, to io.Writer) error {
	if _, err := io.Copy(to, io.NewSectionReader(file, 0, length)); err != nil {
		return err
	}
	_, err := file.Seek(0, io.SeekStart)
	return errors.Join(err, file.Truncate(0))
}

func read(from io.Reader) (request request, err error) {
	length := [4]byte{}
	if _, err = io.ReadFull(from, length[:]); err != nil {
		return request, err
	}
	size := binary.BigEndian.Uint32(length[:])
	if size > maxRequest {
		return request, errors.New("the request is too long")
	}
	text := make([]byte, size)
	if _, err = io.ReadFull(from, text); err != nil {
		return request, io.ErrUnexpectedEOF
	}
	return request, json.Unmarshal(text, &request)
}

func write(to io.Writer, message any) error {
	text, err := json.Marshal(message)
	if err != nil {
		return err
	}
	_, err = to.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...))
	return err
}
