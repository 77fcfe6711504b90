package group

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// What is no command is an error at every level; a group alone shows its help.
func TestGuard(t *testing.T) {
	for line, want := range map[string]struct{ fails, shows string }{
		"x":              {`unknown command "x" for "p"`, ""},
		"outer x":        {`unknown command "x" for "p outer"; take one of inner`, ""},
		"outer inner x":  {`unknown command "x" for "p outer inner"; take one of a, b`, ""},
		"outer inner a":  {"", "ran a\n"},
		"outer inner":    {"", "Available Commands"},
		"outer":          {"", "Available Commands"},
		"completion x":   {`unknown command "x" for "p completion"; take one of bash,`, ""},
		"outer --none x": {"unknown flag", ""},
	} {
		root := &cobra.Command{Use: "p", SilenceErrors: true, SilenceUsage: true}
		outer, inner := &cobra.Command{Use: "outer"}, &cobra.Command{Use: "inner"}
		for _, name := range []string{"a", "b"} {
			inner.AddCommand(&cobra.Command{Use: name, Run: func(cmd *cobra.Command, _ []string) { cmd.Println("ran", name) }})
		}
		outer.AddCommand(inner)
		root.AddCommand(outer)
		Guard(root)
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetArgs(strings.Fields(line))
		err := root.Execute()
		if (err == nil) != (want.fails == "") || err != nil && !strings.HasPrefix(err.Error(), want.fails) || !strings.Contains(out.String(), want.shows) {
			t.Errorf("%s: %v\n%s\nwant %+v", line, err, out.String(), want)
		}
	}
}
