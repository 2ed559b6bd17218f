package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"golang.org/x/term"
)

// output is the -o flag of one verb.
type output struct {
	format format
}

// format is table, json or yaml; empty is table.
type format string

func (f *format) String() string {
	if *f == "" {
		return "table"
	}
	return string(*f)
}

func (f *format) Set(s string) error {
	switch s {
	case "table", "json", "yaml":
		*f = format(s)
		return nil
	}
	return fmt.Errorf("format %q is unknown; want table, json or yaml", s)
}

func (*format) Type() string { return "FORMAT" }

func (o *output) flags(cmd *cobra.Command) {
	cmd.Flags().VarP(&o.format, "output", "o", "`FORMAT` of the answer: table, json or yaml")
	must(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(
		[]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp)))
}

// must is for what can fail by a slip in this program only.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// print writes v as JSON or YAML, or calls tableFn. YAML has the keys of JSON, in their order.
func (o *output) print(cmd *cobra.Command, v any, tableFn func() error) error {
	if o.format.String() == "table" {
		return tableFn()
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	if o.format == "yaml" {
		return writeYAML(cmd.OutOrStdout(), buf.Bytes())
	}
	_, err := cmd.OutOrStdout().Write(buf.Bytes())
	return err
}

// writeYAML turns JSON, which YAML 1.2 contains, into block style.
func writeYAML(w io.Writer, jsonText []byte) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(jsonText, &doc); err != nil {
		return fmt.Errorf("output: yaml: %w", err)
	}
	plain(&doc)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return fmt.Errorf("output: yaml: %w", err)
	}
	return enc.Close()
}

// plain takes JSON's brackets and quotes off a node. Empty lists and maps keep their brackets;
// strings that would read as something else keep their quotes, by the encoder.
func plain(n *yaml.Node) {
	if len(n.Content) > 0 || n.Kind == yaml.ScalarNode {
		n.Style = 0
	}
	for _, c := range n.Content {
		plain(c)
	}
}

// isTerminal tells whether a person is likely to be looking at w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// colors tells whether w may be written to in colours (https://no-color.org).
func colors(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// newTable returns a table that looks like those of kubectl and ip: columns, no lines.
func newTable(cmd *cobra.Command, header ...any) table.Writer {
	t := table.NewWriter()
	t.SetOutputMirror(cmd.OutOrStdout())
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatUpper
	t.SetStyle(style)
	t.AppendHeader(table.Row(header))
	t.SuppressTrailingSpaces()
	return t
}

// dash stands for nothing in a table.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
