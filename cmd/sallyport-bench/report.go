package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/bench/publish"
)

// reportCommand writes the documents of benchmarks.
func reportCommand(out io.Writer) *cobra.Command {
	cfg := publish.Config{Out: out}
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Write what was measured as documents and pictures",
		Long: `Write what was measured as documents and pictures.

What one command measured is a file NAME.json, as compare --json and record write
it. All of them together become the table of targets, a document with all figures,
and pictures. A part that was not measured again keeps its figures, with their date.
NAME.partial.json, which --whole leaves of a run that did not measure everything, is
no part; rename it to NAME.json to have it as one.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return publish.Run(cfg) },
	}
	cmd.Flags().StringVar(&cfg.Parts, "parts", "docs/benchmarks", "`DIR` of the parts, and of what is written of them")
	cmd.Flags().StringVar(&cfg.Document, "out", "docs/benchmarks.md", "replace the marked part of `FILE`")
	return cmd
}

// recordCommand runs Go benchmarks and keeps their figures.
func recordCommand(out io.Writer) *cobra.Command {
	cfg := publish.RecordConfig{Out: out}
	cmd := &cobra.Command{
		Use:   "record --json FILE -- COMMAND [ARGUMENT...]",
		Short: "Run Go benchmarks and keep their figures for the report",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg.Command = args
			return publish.Record(cmd.Context(), cfg)
		},
	}
	cmd.Flags().StringVar(&cfg.JSON, "json", "", "write the figures to `FILE`, whose name is the part's")
	cmd.Flags().StringVar(&cfg.Title, "title", "", "the `HEADING` in the report")
	return cmd
}
