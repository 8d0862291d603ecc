package main

import (
	"context"
	"fmt"
	"io"
)

// settings are what an operator may turn, each beside the default.
var settings = []struct {
	name, about string
	change      func(c *Contender)
}{
	{"default", "", func(*Contender) {}},
	{"GOMEMLIMIT=200MiB", "garbage collected more often", func(c *Contender) { c.Env = []string{"GOMEMLIMIT=200MiB"} }},
	{"GOMEMLIMIT=1GiB", "garbage collected less often", func(c *Contender) { c.Env = []string{"GOMEMLIMIT=1GiB"} }},
	{"GOGC=50", "the same within the limit: half as much may pile up", func(c *Contender) { c.Env = []string{"GOGC=50"} }},
	{"GOGC=200", "the same within the limit: twice as much may pile up", func(c *Contender) { c.Env = []string{"GOGC=200"} }},
	{"bus.sync_interval: 1s", "a power cut may cost a second of what was confirmed", func(c *Contender) { c.Bus = ", sync_interval: 1s" }},
	{"dedupe.lanes: 8", "eight owners are possible; smaller frames", func(c *Contender) { c.Extra = "dedupe: {lanes: 8}" }},
}

// turn measures what each setting costs or saves.
func turn(ctx context.Context, binary string, scale float64, rounds int, say io.Writer) (*Pair, error) {
	set, err := setNamed("million")
	if err != nil {
		return nil, err
	}
	var all []Contender
	for _, s := range settings {
		c := Contender{Name: s.name, Binary: binary}
		s.change(&c)
		all = append(all, c)
	}
	p, err := takeTurns(ctx, set, 0.4*scale, rounds, all, Options{}, say)
	if err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	return p, nil
}
