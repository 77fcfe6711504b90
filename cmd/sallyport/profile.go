package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/control/api"
)

const (
	// profileTime is more than the longest profile takes.
	profileTime = 90 * time.Second
	// maxProfile is more than a profile has, in bytes; traces of a busy gateway are the largest.
	maxProfile = 1 << 30
)

// profileKinds are the kinds, with the names that net/http/pprof has for them.
var profileKinds = [...]struct{ kind, path string }{
	{"cpu", "profile"}, {"heap", "heap"}, {"allocs", "allocs"}, {"goroutine", "goroutine"}, {"mutex", "mutex"}, {"block", "block"}, {"trace", "trace"},
}

// profilePath is where a kind is asked for. Nothing else is: a path of somebody's own would
// get the token, and something that is no profile.
func profilePath(kind string) (string, error) {
	var kinds []string
	for _, k := range profileKinds {
		if k.kind == kind {
			return "/debug/pprof/" + k.path, nil
		}
		kinds = append(kinds, k.kind)
	}
	return "", fmt.Errorf("there is no profile %q; take one of %s", kind, strings.Join(kinds, ", "))
}

// profileQuery is which profile is asked for, and where.
type profileQuery struct {
	kind, tokenFile, out string
	admin                adminListener
	seconds              int
}

func profileCommand() *cobra.Command {
	var q profileQuery
	cmd := &cobra.Command{
		Use:   "profile KIND --out FILE",
		Short: "Take a profile of the sallyportd on this machine",
		Long: `Take a profile of the sallyportd on this machine, for "go tool pprof" (a trace: "go
tool trace"). KIND is cpu, heap, allocs, goroutine, mutex, block or trace.

It asks the daemon's admin listener (admin.listen) with the token of its own that
admin.token_file of the daemon's configuration names. One profile is taken at a time,
of 60 seconds at most; it slows the daemon by a few per cent.`,
		Example: "  sallyport profile cpu --seconds 30 --out cpu.pb.gz --admin-token-file /etc/sallyport/admin-token\n  go tool pprof -top cpu.pb.gz",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.kind = args[0]
			n, err := q.save(cmd.Context())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d bytes\n", q.out, n)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&q.out, "out", "", "`FILE` to write (needed)")
	q.admin.flag(cmd)
	f.StringVar(&q.tokenFile, "admin-token-file", "/etc/sallyport/admin-token", "`FILE` with the token of admin.token_file")
	f.IntVar(&q.seconds, "seconds", 0, "how long, 1 to 60; 0: 30 for cpu, 1 for trace, 10 for mutex and block, what there is for the others")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// save asks for the profile and writes it. Nothing is left behind if that fails.
func (q profileQuery) save(ctx context.Context) (n int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, profileTime)
	defer cancel()
	body, err := q.ask(ctx)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	f, err := os.OpenFile(q.out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, fmt.Errorf("--out: %w", err)
	}
	n, err = io.Copy(f, io.LimitReader(body, maxProfile))
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, errors.Join(fmt.Errorf("write the profile to %s: %w", q.out, err), os.Remove(q.out))
	}
	return n, nil
}

// ask returns the profile as it comes.
func (q profileQuery) ask(ctx context.Context) (io.ReadCloser, error) {
	path, err := profilePath(q.kind)
	if err != nil {
		return nil, err
	}
	token, err := api.ReadAdminTokenFile(q.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("--admin-token-file: %w", err)
	}
	query := url.Values{}
	if q.seconds != 0 {
		query.Set("seconds", strconv.Itoa(q.seconds))
	}
	body, err := q.admin.get(ctx, adminRequest{path: path, query: query, token: token})
	if refusal := (*adminRefusal)(nil); errors.As(err, &refusal) {
		return nil, fmt.Errorf("sallyportd at %s gives no profile: %s", q.admin.address, refusal.text)
	}
	return body, err
}
