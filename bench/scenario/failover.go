package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport-net/sallyport/bench/trial"
)

// The failover command of this program makes the faults. A run of all of them takes about
// half a minute.
const (
	failoverProgram = "sallyport-bench"
	failoverRuns    = 3
	shortFor        = 5 * time.Second  // loads shorter than that want to be through soon
	failoverWait    = 10 * time.Second // that it may take to clear up
)

// failedOver is what that command writes, as far as it is read.
type failedOver struct {
	NotRun string  `json:"notRun"`
	Faults []spell `json:"faults"`
	All    spell   `json:"all"`
	Load   *struct {
		Switches uint64 `json:"switches"`
	} `json:"load"`
	Problems []string `json:"problems"`
}

// spell sums up how long a fault was felt.
type spell struct {
	Fault string `json:"fault"`
	First struct {
		Count int           `json:"count"`
		P50   time.Duration `json:"p50"`
		P99   time.Duration `json:"p99"`
		Max   time.Duration `json:"max"`
	} `json:"first"`
}

// failover loses hosts and regions, and loads, in a world of its own.
func (r *runner) failover(ctx context.Context, o *outcome) error {
	if !r.cfg.Chain {
		return notRun("it kills gateways, and so builds some of its own: give --chain")
	}
	runs, of := failoverRuns, "SIGKILL, SIGSTOP, blackhole"
	if r.cfg.For < shortFor {
		runs, of = 1, "SIGKILL"
	}
	return r.step(ctx, o, trial.Plural(runs, "run")+" each of "+of, load{}, func(s *step) error {
		f, err := r.runFailover(ctx, runs, strings.ReplaceAll(of, " ", ""))
		if err != nil {
			return err
		}
		if f.NotRun != "" {
			return notRun(f.NotRun)
		}
		s.Figures[figureFailoverP50] = millis(f.All.First.P50)
		s.Figures[figureFailoverP99] = millis(f.All.First.P99)
		s.Figures[figureFailoverMax] = millis(f.All.First.Max)
		for _, one := range f.Faults {
			o.Steps = append(o.Steps, &step{Name: one.Fault, Attempts: 1, Figures: values{
				figureFailoverP50: millis(one.First.P50), figureFailoverP99: millis(one.First.P99), figureFailoverMax: millis(one.First.Max),
			}})
		}
		for _, p := range f.Problems {
			s.fail("%s", p)
		}
		return nil
	})
}

// runFailover runs the command. What it finds wrong is in its answer, whatever its exit code.
func (r *runner) runFailover(ctx context.Context, runs int, faults string) (f failedOver, err error) {
	args := []string{"failover", "--json", "--runs", fmt.Sprint(runs), "--faults", faults, "--load", r.cfg.For.String(), "--bin", r.cfg.Bin}
	if r.cfg.KeepLogs != "" {
		args = append(args, "--keep-logs", r.cfg.KeepLogs)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(r.cfg.Bin, failoverProgram), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = failoverWait
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err = cmd.Run()
	if jerr := json.Unmarshal(out.Bytes(), &f); jerr != nil {
		if errors.Is(err, os.ErrNotExist) {
			return f, fmt.Errorf("there is no program %s (make build; --bin): %w", cmd.Path, err)
		}
		return f, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), errors.Join(err, jerr), said.String())
	}
	return f, nil
}
