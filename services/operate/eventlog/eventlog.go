// Package eventlog looks into the log of events: search backwards, follow, one event.
package eventlog

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/topology"
)

var (
	errPlace = fault.Define("eventlog.bad_place", fault.Reject,
		"use a place as it was shown, e.g. 1234.56: the sequence of a frame and the index of an event in it")
	errID = fault.Define("eventlog.bad_id", fault.Reject,
		"an event's id is 32 hex digits; search for other texts with the filter for text")
	// ErrGone is that of an event that is not in the log, or not any more.
	ErrGone = fault.Define("eventlog.gone", fault.Reject,
		"look whether the log reaches back that far: penstock topology show; older events are at the destinations")
)

// Place is where an event is: index Index of the frame with a sequence. As a cursor it
// stands before that event. The zero value is the end of the log.
type Place struct {
	Sequence uint64 `json:"sequence"`
	Index    int    `json:"index"`
}

// String is what ParsePlace reads.
func (p Place) String() string { return fmt.Sprintf("%d.%d", p.Sequence, p.Index) }

// ParsePlace reads a place; "" is the zero value.
func ParsePlace(s string) (Place, error) {
	if s == "" {
		return Place{}, nil
	}
	sequence, index, _ := strings.Cut(s, ".")
	var p Place
	var err, indexErr error
	p.Sequence, err = strconv.ParseUint(sequence, 10, 63)
	p.Index, indexErr = strconv.Atoi(index)
	if err != nil || indexErr != nil || p.Index < 0 {
		return Place{}, errPlace.New(nil, "read the place %q", s)
	}
	return p, nil
}

// Found is one event of the log.
type Found struct {
	Place   Place     `json:"place"`
	ID      string    `json:"id"`
	Type    string    `json:"type"`
	Source  string    `json:"source"`
	Format  string    `json:"format"`
	Account string    `json:"account,omitempty"`
	Region  string    `json:"region,omitempty"`
	Time    time.Time `json:"time"`
	// Stored is when the log stored it.
	Stored time.Time        `json:"stored"`
	Origin *messages.Origin `json:"-"`
	// Record is its ordinal in what it came from.
	Record uint64 `json:"record"`
	Replay string `json:"replay,omitempty"`
	Doc    []byte `json:"-"`
}

// Budget bounds one search.
type Budget struct {
	Frames int           // that are read; 0 is 2000
	Time   time.Duration // 0 is 3 s
}

// Page is what one search has found, newest first.
type Page struct {
	Events []Found
	// Next is the place to go on at, towards older ones, when there is More. Where the
	// budget ended the search there may be fewer events than asked for, or none.
	Next Place
	More bool
	// Frames and Looked (events) were read, Reached is when the oldest of them was stored.
	Frames, Looked uint64
	Reached        time.Time
	// Failed is for how many events the expression failed: they are not among the found.
	Failed int
	// Kept is when the oldest frame of the log was stored, where the span begins before
	// that: what was before is gone. Of a log that is empty by now it is the present. Told on the first page only.
	Kept time.Time
}

// Log looks into the event log. Methods may be called concurrently.
type Log struct{ bus *topology.Bus }

// New makes one.
func New(bus *topology.Bus) *Log { return &Log{bus: bus} }
