// Package group has commands that only hold others refuse what none of these is.
package group

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// Guard has every command below root that only holds others (cobra's "completion", too)
// refuse words that are none of them. By itself cobra does so for the root alone, and
// shows help as if all were well for the others. Without a word they show their help, as
// the root does. All commands must have been added before.
func Guard(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		guard(cmd)
	}
}

func guard(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		guard(c)
	}
	if !cmd.HasSubCommands() || cmd.Runnable() {
		return
	}
	cmd.Args = noWords
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// noWords says which commands there are instead of the one that was given.
func noWords(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return fmt.Errorf("unknown command %q for %q; take one of %s", args[0], cmd.CommandPath(), strings.Join(names, ", "))
}
