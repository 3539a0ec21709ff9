package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// The test binary is the program when this says so.
const asProgram = "HELM_WORKER_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func chart(t *testing.T, files map[string]string) string {
	t.Helper()
	directory := t.TempDir()
	files["Chart.yaml"] = "apiVersion: v2\nname: web\nversion: 0.1.0\n"
	for name, text := range files {
		path := filepath.Join(directory, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return directory
}

type worker struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     io.Reader
}

func start(t *testing.T) (worker, hello) {
	t.Helper()
	command := exec.Command(os.Args[0], "serve")
	command.Env = []string{asProgram + "=1", "HOME=/nonexistent"}
	in, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = command.Process.Kill() })
	greeting := hello{}
	worker := worker{command, in, out}
	worker.receive(t, &greeting)
	return worker, greeting
}

func (w worker) receive(t *testing.T, message any) {
	t.Helper()
	text := make([]byte, 4)
	if _, err := io.ReadFull(w.out, text); err != nil {
		t.Fatal(err)
	}
	text = make([]byte, int(text[0])<<24|int(text[1])<<16|int(text[2])<<8|int(text[3]))
	if _, err := io.ReadFull(w.out, text); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, message); err != nil {
		t.Fatal(err)
	}
}

func (w worker) run(t *testing.T, request request) (answer, string, string) {
	t.Helper()
	if err := write(w.in, request); err != nil {
		t.Fatal(err)
	}
	answer := answer{}
	w.receive(t, &answer)
	stdout, stderr := make([]byte, answer.Stdout), make([]byte, answer.Stderr)
	if _, err := io.ReadFull(w.out, stdout); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(w.out, stderr); err != nil {
		t.Fatal(err)
	}
	return answer, string(stdout), string(stderr)
}

func template(directory string, more ...string) request {
	return request{
		Arguments: append([]string{"template", "."}, more...), Directory: directory, Environment: []string{"HOME=/nonexistent"},
		Deadline: 60_000, MaxStdout: 1 << 20, MaxStderr: 1 << 16,
	}
}

func TestAWorkerGivesWhatAProcessGives(t *testing.T) {
	shown := "ns: {{ .Release.Namespace }} {{ .Capabilities.KubeVersion }}\nmode: {{ .Values.mode | default \"none\" }}\n"
	schema := `{"properties": {"mode": {"$ref": "urn:nowhere"}}}`
	good := chart(t, map[string]string{"templates/a.yaml": shown, "values.schema.json": schema})
	bad := chart(t, map[string]string{"templates/a.yaml": "a: {{ fail \"no\" }}\n"})
	panics := chart(t, map[string]string{"templates/a.yaml": "a: {{ regexReplaceAll \"(\" \"x\" \"y\" }}\n"})
	requests := []request{
		template(good, "--namespace", "one", "--kube-version", "1.30.1", "--set", "mode=x"),
		template(good),
		template(bad),
		template(panics, "--debug"),
		template(good, "--no-such-flag"),
		template(good, "--help"),
		template(good, "--color", "wrong"),
	}
	worker, _ := start(t)
	for round := range 3 {
		for _, request := range requests {
			process := exec.Command(os.Args[0], request.Arguments...)
			process.Dir, process.Env = request.Directory, append(request.Environment, asProgram+"=1")
			stdout, stderr := bytes.Buffer{}, bytes.Buffer{}
			process.Stdout, process.Stderr = &stdout, &stderr
			_ = process.Run()
			answer, out, err := worker.run(t, request)
			if answer.Status != process.ProcessState.ExitCode() || out != stdout.String() || err != stderr.String() {
				t.Errorf("round %d, %q: %+v\n%s%s--- a process\n%s%s", round, request.Arguments, answer, out, err, &stdout, &stderr)
			}
		}
	}
}

func TestOutputIsBounded(t *testing.T) {
	large := chart(t, map[string]string{"templates/a.yaml": "a: {{ repeat 5000 \"x\" }}\n"})
	worker, _ := start(t)
	request := template(large)
	request.MaxStdout = 1000
	if answer, stdout, _ := worker.run(t, request); !answer.TooLong || stdout != "" {
		t.Errorf("%+v", answer)
	}
	request.MaxStdout = 10_000
	if answer, stdout, _ := worker.run(t, request); answer.TooLong || len(stdout) < 5000 {
		t.Errorf("%+v", answer)
	}
}

func TestTheEndOfTheInputEndsARender(t *testing.T) {
	endless := chart(t, map[string]string{"templates/a.yaml": "{{ range until 60000 }}{{ range until 60000 }}{{ end }}{{ end }}\n"})
	worker, _ := start(t)
	if err := write(worker.in, template(endless)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	_ = worker.in.Close()
	if err := worker.command.Wait(); err != nil {
		t.Error(err)
	}
}

func TestWhatWantsTheNetworkIsRefusedAndTheWorkerLivesOn(t *testing.T) {
	schema := `{"$ref": "http://127.0.0.1:9/schema.json"}`
	remote := chart(t, map[string]string{"values.schema.json": schema, "templates/a.yaml": "a: 1\n"})
	local := chart(t, map[string]string{"templates/a.yaml": "a: 1\n"})
	worker, greeting := start(t)
	if !greeting.Confined {
		t.Skip("SKIPPED: this system does not let a process confine itself")
	}
	if answer, _, stderr := worker.run(t, template(remote)); answer.Status == 0 || !strings.Contains(stderr, "operation not permitted") {
		t.Errorf("%+v %s", answer, stderr)
	}
	if answer, _, stderr := worker.run(t, template(local)); answer.Status != 0 {
		t.Errorf("%+v %s", answer, stderr)
	}
}

// Each command would leave a goroutine, an initializer and its flags.
func TestNothingGathers(t *testing.T) {
	if err := fits(); err != nil {
		t.Fatal(err)
	}
	t.Chdir(chart(t, map[string]string{"templates/a.yaml": "a: 1\n"}))
	run := func() {
		forget()
		if status := helm(io.Discard, []string{"template", "."}); status != 0 || len(initializers) != 1 || len(completions) == 0 {
			t.Fatalf("status %d, %d initializers", status, len(initializers))
		}
		if err := endWaiting(); err != nil {
			t.Fatal(err)
		}
	}
	run()
	before, flags := runtime.NumGoroutine(), len(completions)
	for range 50 {
		run()
	}
	for range 100 {
		if runtime.NumGoroutine() <= before+2 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if after := runtime.NumGoroutine(); after > before+2 || len(completions) != flags {
		t.Errorf("%d goroutines became %d, %d flags %d", before, after, flags, len(completions))
	}
}
