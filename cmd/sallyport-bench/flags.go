package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sallyport-net/sallyport/bench/document"
)

// wrongValue says of an option's value that it is none of those that the option takes, and which
// these are. Other errors stay as they are.
func wrongValue(_ *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err
	}
	kinds := map[string]string{
		"int": "no whole number", "uint64": "no whole number", "intSlice": "no list of whole numbers, such as 1,100",
		"duration": "no time, such as 500ms, 10s or 2m", "bool": "neither true nor false",
	}
	f := invalid.GetFlag()
	kind, known := kinds[f.Value.Type()]
	if !known {
		return err
	}
	part := "" // of a list
	var number *strconv.NumError
	if errors.As(err, &number) && number.Num != invalid.GetValue() {
		part = fmt.Sprintf(" (%q is none)", number.Num)
	}
	_, usage := pflag.UnquoteUsage(f)
	return fmt.Errorf("--%s %q is %s%s; it is: %s", f.Name, invalid.GetValue(), kind, part, usage)
}

// beside is where tables and the like go, as a file and to write to: standard output, unless it is
// one of the files that are asked for, which has it to itself then.
func beside(out io.Writer, files ...string) (*os.File, io.Writer) {
	if slices.Contains(files, document.Standard) {
		return os.Stderr, os.Stderr
	}
	return os.Stdout, out
}
