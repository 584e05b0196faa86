package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"go.yaml.in/yaml/v4"
)

// Bounds of a quorum.
const (
	defaultQuorumTimeout  = 5 * time.Second
	defaultArchiveTimeout = 15 * time.Second
	maxQuorumTimeout      = 5 * time.Minute
	maxQuorum             = 16
	maxRules              = 1000

	minMaxLag = 100 * time.Millisecond
	maxMaxLag = 24 * time.Hour
)

// setDurability takes a list of {match, level, n, ack, timeout, lag}.
func setDurability(p *parser, n *yaml.Node) error {
	if n.Kind != yaml.SequenceNode {
		return errors.New("must be a list, like - {match: \"orders*.db\", level: quorum, n: 1}")
	}
	if len(n.Content) > maxRules {
		return fmt.Errorf("has %d rules, at most %d are allowed", len(n.Content), maxRules)
	}
	p.cfg.Durability = nil
	for _, item := range n.Content {
		r, err := p.durabilityRule(resolve(item))
		if err != nil {
			return err
		}
		p.cfg.Durability = append(p.cfg.Durability, r)
	}
	return nil
}

func (p *parser) durabilityRule(item *yaml.Node) (DurabilityRule, error) {
	var r DurabilityRule
	if item.Kind != yaml.MappingNode {
		return r, fmt.Errorf("line %d: each rule must be of the form - {match: \"orders*.db\", level: quorum}", item.Line)
	}
	values := make(map[string]string)
	for i := 0; i+1 < len(item.Content); i += 2 {
		name := item.Content[i]
		if _, twice := values[name.Value]; twice {
			return r, fmt.Errorf("%s at line %d is given twice", name.Value, name.Line)
		}
		v, err := p.scalar(resolve(item.Content[i+1]))
		if err != nil {
			return r, fmt.Errorf("line %d: %w", name.Line, err)
		}
		switch name.Value {
		case "match", "level", "n", "ack", "timeout", "lag":
			values[name.Value] = v
		default:
			return r, fmt.Errorf("unknown key %q at line %d: a rule has match, level, n, ack, timeout and lag", name.Value, name.Line)
		}
	}
	if err := r.read(values); err != nil {
		return r, fmt.Errorf("line %d: %w", item.Line, err)
	}
	return r, nil
}

func (r *DurabilityRule) read(values map[string]string) (err error) {
	if r.Match = values["match"]; r.Match == "" {
		return errors.New("the rule has no match: name the databases, like \"*.db\"")
	}
	if err := checkPattern(r.Match); err != nil {
		return err
	}
	r.Level = values["level"]
	own, known := ofLevel[r.Level]
	if !known {
		return fmt.Errorf("level %q is none of async, quorum, max-lag and archive", r.Level)
	}
	for _, name := range []string{"n", "ack", "timeout", "lag"} {
		if values[name] != "" && !slices.Contains(own, name) {
			return fmt.Errorf("%s is not for level %s", name, r.Level)
		}
	}
	switch r.Level {
	case LevelQuorum:
		return r.readQuorum(values)
	case LevelMaxLag:
		return r.readMaxLag(values)
	case LevelArchive:
		r.Timeout = defaultArchiveTimeout
		return r.readTimeout(values["timeout"])
	}
	return nil
}

// ofLevel names the keys that a level has.
var ofLevel = map[string][]string{LevelAsync: nil, LevelQuorum: {"n", "ack", "timeout"}, LevelMaxLag: {"lag"}, LevelArchive: {"timeout"}}

func (r *DurabilityRule) readMaxLag(values map[string]string) (err error) {
	if values["lag"] == "" {
		return errors.New("level max-lag has no lag: how far the best replica may be behind, like lag: 2s")
	}
	if r.Lag, err = parsePositive(values["lag"]); err != nil {
		return fmt.Errorf("lag: %w", err)
	}
	if r.Lag < minMaxLag || r.Lag > maxMaxLag {
		return fmt.Errorf("lag: %v is not from 100ms to 24h", r.Lag)
	}
	return nil
}

func (r *DurabilityRule) readQuorum(values map[string]string) (err error) {
	r.N, r.Timeout = 1, defaultQuorumTimeout
	if v := values["n"]; v != "" {
		if r.N, err = strconv.Atoi(v); err != nil || r.N < 1 || r.N > maxQuorum {
			return fmt.Errorf("n: %q is no number from 1 to %d", v, maxQuorum)
		}
	}
	switch v := values["ack"]; v {
	case "", "durable":
	case "memory":
		r.Memory = true
	default:
		return fmt.Errorf("ack: %q is neither durable nor memory", v)
	}
	return r.readTimeout(values["timeout"])
}

func (r *DurabilityRule) readTimeout(v string) (err error) {
	if v == "" {
		return nil
	}
	if r.Timeout, err = parsePositive(v); err != nil {
		return fmt.Errorf("timeout: %w", err)
	}
	if r.Timeout < time.Millisecond || r.Timeout > maxQuorumTimeout {
		return fmt.Errorf("timeout: %v is not from 1ms to %v", r.Timeout, maxQuorumTimeout)
	}
	return nil
}

// promises reports whether any commit is to wait for others than this node.
func (c *Config) promises() bool { return c.asks(LevelQuorum) || c.asks(LevelArchive) }

// asks reports whether a rule has a level.
func (c *Config) asks(level string) bool {
	return slices.ContainsFunc(c.Durability, func(r DurabilityRule) bool { return r.Level == level })
}

func durabilityYAML(rules []DurabilityRule) *yaml.Node {
	list := &yaml.Node{Kind: yaml.SequenceNode}
	for _, r := range rules {
		item := &yaml.Node{Kind: yaml.MappingNode}
		add(item, "match", str(r.Match))
		add(item, "level", str(r.Level))
		switch r.Level {
		case LevelMaxLag:
			add(item, "lag", str(r.Lag.String()))
		case LevelArchive:
			add(item, "timeout", str(r.Timeout.String()))
		case LevelQuorum:
			ack := "durable"
			if r.Memory {
				ack = "memory"
			}
			add(item, "n", plain(strconv.Itoa(r.N)))
			add(item, "ack", str(ack))
			add(item, "timeout", str(r.Timeout.String()))
		}
		list.Content = append(list.Content, item)
	}
	return list
}
