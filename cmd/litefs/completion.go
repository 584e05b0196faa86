package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func runCompletion(ctx context.Context, args []string, std stdio, signals *signals) error {
	f := newFlags("completion", "litefs completion bash|zsh|fish",
		"Prints a script by which a shell completes commands and flags.",
		"litefs completion bash > /etc/bash_completion.d/litefs")
	shells, err := f.parse(args, std)
	if err != nil {
		return err
	}
	write := map[string]func(io.Writer, []described) error{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}
	if len(shells) != 1 || write[shells[0]] == nil {
		return usagef("want: litefs completion bash, zsh or fish")
	}
	list, err := describe(ctx, signals)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(std.out)
	if err := write[shells[0]](out, list); err != nil {
		return err
	}
	return out.Flush()
}

// described is a command with its flags.
type described struct {
	name, summary string
	flags         []describedFlag
}

type describedFlag struct {
	name  string
	value string // what it takes, like FILE; "": nothing
	usage string
}

// describeFlags makes a command print its flags, a line each, and nothing else.
const describeFlags = "-describe-flags"

// describe asks every command for its flags.
func describe(ctx context.Context, signals *signals) ([]described, error) {
	var list []described
	for _, cmd := range commands(signals) {
		d := described{name: cmd.name, summary: cmd.summary}
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		// All of it fits into the pipe: no command has flags for 64 KiB.
		err = cmd.run(ctx, []string{describeFlags}, stdio{out: w, err: w})
		if err != errHelp { //nolint:errorlint // it is the one that parse returns
			return nil, fmt.Errorf("flags of %s: %w", cmd.name, err)
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			name, rest, _ := strings.Cut(lines.Text(), "\t")
			value, usage, _ := strings.Cut(rest, "\t")
			d.flags = append(d.flags, describedFlag{name, value, usage})
		}
		if err := r.Close(); err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	return list, nil
}

func bashCompletion(w io.Writer, list []described) error {
	var names []string
	for _, d := range list {
		names = append(names, d.name)
	}
	fmt.Fprintf(w, `# bash completion for litefs
_litefs() {
	local current=${COMP_WORDS[COMP_CWORD]} i flags=
	for ((i = 1; i < COMP_CWORD; i++)); do
		[ "${COMP_WORDS[i]}" = -- ] && return
	done
	if [ "$COMP_CWORD" -eq 1 ]; then
		COMPREPLY=($(compgen -W "%s help" -- "$current"))
		return
	fi
	case ${COMP_WORDS[1]} in
`, strings.Join(names, " "))
	for _, d := range list {
		if len(d.flags) == 0 {
			continue
		}
		var flags []string
		for _, f := range d.flags {
			flags = append(flags, "-"+f.name)
		}
		fmt.Fprintf(w, "\t%s) flags=\"%s\" ;;\n", d.name, strings.Join(flags, " "))
	}
	_, err := fmt.Fprintf(w, `	completion) COMPREPLY=($(compgen -W "bash zsh fish" -- "$current")); return ;;
	help) COMPREPLY=($(compgen -W "%s" -- "$current")); return ;;
	esac
	[[ $current == -* ]] && COMPREPLY=($(compgen -W "$flags" -- "$current"))
}
complete -o default -F _litefs litefs
`, strings.Join(names, " "))
	return err
}

func zshCompletion(w io.Writer, list []described) error {
	fmt.Fprint(w, "#compdef litefs\n# zsh completion for litefs\n_litefs() {\n\tlocal -a commands\n\tcommands=(\n")
	for _, d := range list {
		fmt.Fprintf(w, "\t\t%s\n", quoted(d.name+":"+d.summary))
	}
	fmt.Fprint(w, "\t)\n\tif ((CURRENT == 2)); then\n\t\t_describe command commands\n\t\treturn\n\tfi\n\tshift words\n\t((CURRENT--))\n\tcase ${words[1]} in\n")
	for _, d := range list {
		fmt.Fprintf(w, "\t%s)\n\t\t_arguments", d.name)
		for _, f := range d.flags {
			spec := "-" + f.name + "[" + strings.NewReplacer("[", "\\[", "]", "\\]", ":", "\\:").Replace(f.usage) + "]"
			if f.value != "" {
				spec += ":" + f.value + ":"
				if takesPath(f.value) {
					spec += "_files"
				}
			}
			fmt.Fprintf(w, " \\\n\t\t\t%s", quoted(spec))
		}
		rest := "*:file:_files"
		if d.name == "completion" {
			rest = "1:shell:(bash zsh fish)"
		}
		fmt.Fprintf(w, " \\\n\t\t\t%s\n\t\t;;\n", quoted(rest))
	}
	_, err := fmt.Fprint(w, "\tesac\n}\ncompdef _litefs litefs\n")
	return err
}

func fishCompletion(w io.Writer, list []described) error {
	fmt.Fprint(w, "# fish completion for litefs\n")
	for _, d := range list {
		fmt.Fprintf(w, "complete -c litefs -n __fish_use_subcommand -f -a %s -d %s\n", d.name, quoted(d.summary))
	}
	for _, d := range list {
		for _, f := range d.flags {
			takes := ""
			switch {
			case f.value != "" && takesPath(f.value):
				takes = " -r -F"
			case f.value != "":
				takes = " -x"
			}
			fmt.Fprintf(w, "complete -c litefs -n '__fish_seen_subcommand_from %s' -o %s%s -d %s\n", d.name, f.name, takes, quoted(f.usage))
		}
	}
	_, err := fmt.Fprint(w, "complete -c litefs -n '__fish_seen_subcommand_from completion' -f -a 'bash zsh fish'\n")
	return err
}

// takesPath reports whether a flag's value is a path.
func takesPath(value string) bool { return slices.Contains([]string{"FILE", "DIR", "PATH"}, value) }

// quoted is a word of a shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
