// Package standing says how a destination stands in a process, in the words that those
// who deliver and those who ask them share.
package standing

import "time"

// States of a destination in a process.
const (
	Starting = "starting"
	Running  = "running"
	Paused   = "paused"
	Failing  = "failing"
	Stopping = "stopping"
)

// States of a circuit breaker.
const (
	BreakerClosed  = "closed"
	BreakerOpen    = "open"
	BreakerStopped = "stopped"
)

// State is how a destination is in one process.
type State struct {
	Destination string `json:"destination"`
	Type        string `json:"type"`
	// Types and Where are what it has of the event log: all when empty.
	Types []string `json:"types,omitempty"`
	Where string   `json:"where,omitempty"`
	// Fetched tells that others fetch events from it at places of their own, so that
	// nothing can be sent to it again.
	Fetched bool `json:"fetched,omitempty"`
	// State is starting, running, paused, failing or stopping. One that is being paused
	// runs until what was in hand is finished or given back; stopping is one that is not
	// wanted any more, until then.
	State string    `json:"state"`
	Since time.Time `json:"since"`
	// Error is why it fails.
	Error string `json:"error,omitempty"`
	// Breaker is closed, open or stopped while it runs, else "".
	Breaker string `json:"breaker,omitempty"`
}

// Question asks every process that delivers how its destinations are.
const Question = "destinations"

// Answer is what a process says to that.
type Answer struct {
	Process      string  `json:"process"`
	Destinations []State `json:"destinations"`
}
