package config

import (
	"errors"
	"fmt"

	"go.yaml.in/yaml/v4"
)

// setExec takes a command line, or a list of items with the keys cmd,
// if-candidate, if-primary and restart.
func setExec(p *parser, n *yaml.Node) error {
	p.cfg.Exec = nil
	if n.Kind != yaml.SequenceNode {
		line, err := p.shellText(n)
		if err != nil || line == "" {
			return err
		}
		cmd := Command{Restart: RestartNever}
		if cmd.Argv, err = commandLine(line); err != nil {
			return err
		}
		p.cfg.Exec = []Command{cmd}
		return nil
	}
	for i, item := range n.Content {
		item = resolve(item)
		cmd, err := p.execItem(item)
		if err == nil && cmd.Restart != RestartNever && i < len(n.Content)-1 {
			err = errors.New("restart is for the last command of the list: those before it run to their end")
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", item.Line, err)
		}
		p.cfg.Exec = append(p.cfg.Exec, cmd)
	}
	return nil
}

// execItem reads one command of a list.
func (p *parser) execItem(item *yaml.Node) (cmd Command, err error) {
	if item.Kind != yaml.MappingNode {
		return cmd, errors.New("each item must be of the form - cmd: \"program arguments\"")
	}
	cmd.Restart = RestartNever
	given := map[string]bool{}
	for i := 0; i+1 < len(item.Content); i += 2 {
		name, value := item.Content[i].Value, resolve(item.Content[i+1])
		if given[name] {
			return cmd, fmt.Errorf("%s at line %d is given twice", name, item.Content[i].Line)
		}
		given[name] = true
		var text string
		if name == "cmd" {
			text, err = p.shellText(value)
		} else {
			text, err = p.scalar(value)
		}
		switch {
		case err != nil:
		case text == "": // as if it were not there
		case name == "cmd":
			cmd.Argv, err = commandLine(text)
		case name == "if-candidate":
			cmd.IfCandidate, err = parseBool(text)
		case name == "if-primary":
			cmd.IfPrimary, err = parseBool(text)
		case name == "restart":
			cmd.Restart, err = text, checkRestart(text)
		default:
			err = errors.New("unknown key: an item has cmd, if-candidate, if-primary and restart")
		}
		if err != nil {
			return cmd, fmt.Errorf("%s: %w", name, err)
		}
	}
	if cmd.Argv == nil {
		return cmd, errors.New("the item has no cmd")
	}
	return cmd, nil
}

func checkRestart(s string) error {
	switch s {
	case RestartNever, RestartOnFailure, RestartAlways:
		return nil
	}
	return fmt.Errorf("%q is neither never, on-failure nor always", s)
}

func commandLine(line string) ([]string, error) {
	argv, err := SplitCommand(line)
	if err != nil {
		return nil, err
	}
	if len(argv) == 0 || argv[0] == "" {
		return nil, fmt.Errorf("%q names no program", line)
	}
	return argv, nil
}

// execYAML is the list of commands.
func execYAML(commands []Command) *yaml.Node {
	list := &yaml.Node{Kind: yaml.SequenceNode}
	for _, cmd := range commands {
		item := &yaml.Node{Kind: yaml.MappingNode}
		add(item, "cmd", str(JoinCommand(cmd.Argv)))
		if cmd.IfCandidate {
			add(item, "if-candidate", plain("true"))
		}
		if cmd.IfPrimary {
			add(item, "if-primary", plain("true"))
		}
		if cmd.Restart != RestartNever && cmd.Restart != "" {
			add(item, "restart", str(cmd.Restart))
		}
		list.Content = append(list.Content, item)
	}
	return list
}
