package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

// flags is a flag.FlagSet with this program's help: what the command does, an
// example, the flags.
type flags struct {
	*flag.FlagSet
	synopsis string // "litefs mount [flags] DIR"
	about    string
	example  string
}

// errHelp ends a subcommand whose help was asked for and printed.
var errHelp = &exitError{code: 0}

func newFlags(name, synopsis, about, example string) *flags {
	set := flag.NewFlagSet(name, flag.ContinueOnError)
	set.SetOutput(io.Discard) // faults are returned, in one line
	return &flags{FlagSet: set, synopsis: synopsis, about: about, example: example}
}

// parse reads args. Flags may stand before, between and after the positional
// arguments. A fault is a *usageError; -h prints the help and gives errHelp.
func (f *flags) parse(args []string, std stdio) (positional []string, err error) {
	if len(args) == 1 && args[0] == describeFlags {
		f.describe(std.out)
		return nil, errHelp
	}
	for {
		if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
			f.printHelp(std.out)
			return nil, errHelp
		} else if err != nil {
			return nil, usagef("%s: %v: see litefs help %s", f.Name(), err, f.Name())
		}
		if f.NArg() == 0 {
			return positional, nil
		}
		positional = append(positional, f.Arg(0))
		args = f.Args()[1:]
	}
}

// describe prints the flags for a program.
func (f *flags) describe(w io.Writer) {
	f.VisitAll(func(fl *flag.Flag) {
		value, usage := flag.UnquoteUsage(fl)
		fmt.Fprintf(w, "%s\t%s\t%s\n", fl.Name, value, usage)
	})
}

func (f *flags) printHelp(w io.Writer) {
	fmt.Fprintf(w, "usage: %s\n\n%s\n\nExample:\n  %s\n", f.synopsis, f.about, f.example)
	first := true
	f.VisitAll(func(fl *flag.Flag) {
		if first {
			fmt.Fprint(w, "\nFlags:\n")
			first = false
		}
		value, usage := flag.UnquoteUsage(fl)
		if value != "" {
			value = " " + value
		}
		if fl.DefValue != "" && fl.DefValue != "false" {
			usage += " (default " + fl.DefValue + ")"
		}
		fmt.Fprintf(w, "  %-22s %s\n", "-"+fl.Name+value, usage)
	})
}

// cutCommand splits args at the first "--".
func cutCommand(args []string) (before, command []string) {
	for i, a := range args {
		if a == "--" {
			return args[:i], args[i+1:]
		}
	}
	return args, nil
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }
