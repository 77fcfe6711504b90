package publish

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/bench/document"
	"github.com/sallyport-net/sallyport/bench/machine"
	"github.com/sallyport-net/sallyport/bench/report"
)

// RecordConfig says which benchmarks run, and where their figures go.
type RecordConfig struct {
	// Command is the program and its arguments: one that prints what `go test -bench` does.
	Command []string
	// JSON is the file of the part, whose name is that of the part. Title is its heading.
	JSON, Title string
	// Out takes what the command says.
	Out io.Writer
}

// Record runs Go benchmarks and keeps their figures as a part of the report. If one fails
// nothing is written.
func Record(ctx context.Context, cfg RecordConfig) error {
	if len(cfg.Command) == 0 || cfg.JSON == "" {
		return errors.New("record benchmarks: a command and a file are needed")
	}
	if err := document.Writable("--json", cfg.JSON); err != nil {
		return err
	}
	facts := machine.Here()
	p := report.Part{
		Name: strings.TrimSuffix(filepath.Base(cfg.JSON), ".json"), Title: cmp.Or(cfg.Title, "Benchmarks"),
		Command: strings.Join(append([]string{filepath.Base(cfg.Command[0])}, cfg.Command[1:]...), " "), Date: time.Now().UTC().Format(time.DateOnly), Machine: facts.String(),
		Conditions: []string{fmt.Sprintf("load average %.2f at the start", machine.LoadAverage())},
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, cfg.Command[0], cfg.Command[1:]...)
	both := io.MultiWriter(cfg.Out, &said)
	cmd.Stdout, cmd.Stderr = both, both // one writer, so that nothing is written at once
	err := cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("record benchmarks: %s: %w", p.Command, err)
	}
	if p.Figures, err = report.GoBenchmarks(&said); err != nil {
		return err
	}
	var b strings.Builder
	return errors.Join(document.WriteJSON(&b, p), document.Replace(cfg.JSON, b.String()))
}
