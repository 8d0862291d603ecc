package faults

import (
	"encoding/json"
	"os"
	"sync"
	"testing"
)

// faultLine is what became of one fault.
type faultLine struct {
	Type   string  `json:"type"` // fault
	Seed   uint64  `json:"seed"`
	Step   int     `json:"step"`
	Kind   string  `json:"kind"`
	Target string  `json:"target"`
	At     float64 `json:"at_s"`
	For    float64 `json:"for_s"`
	// Through is the time from the fault's end until an event came to the sink that was
	// put after that end, Caught until all had come that was put before it.
	Through float64 `json:"through_s"`
	Caught  float64 `json:"caught_up_s"`
	// Alone says that no other fault fell into the time of Through, CaughtAlone the same
	// of Caught.
	Alone       bool   `json:"alone"`
	CaughtAlone bool   `json:"caught_alone"`
	Note        string `json:"note,omitempty"`
}

// runLine is what a run ended with.
type runLine struct {
	Type    string  `json:"type"` // run
	Seed    uint64  `json:"seed"`
	Date    string  `json:"date"`
	Seconds float64 `json:"seconds"`
	Race    bool    `json:"race"`
	Cores   int     `json:"cores"`
	Memory  float64 `json:"memory_gib"`
	Go      string  `json:"go"`
	System  string  `json:"system"`
	Load    string  `json:"load"`
	Faults  int     `json:"faults"`
	Objects int     `json:"objects"`
	// Events are those that were put, repeats of the input not counted.
	Events int `json:"events"`
	// Lost, Twice and Strange are about the event log.
	Lost        int                 `json:"lost"`
	Twice       int                 `json:"twice"`
	Strange     int                 `json:"strange"`
	Quarantined int                 `json:"quarantined"`
	Balanced    bool                `json:"balanced"`
	Sinks       map[string]sinkLine `json:"sinks"`
	LeftOut     map[string]string   `json:"left_out,omitempty"`
}

// sinkLine is what one destination got.
type sinkLine struct {
	Events  int `json:"events"`  // different ones
	Repeats int `json:"repeats"` // that came once more
	Lost    int `json:"lost"`
	Strange int `json:"strange"`
}

var reporting sync.Mutex

// report appends a line to the file that PENSTOCK_FAULTS_REPORT names, if it does.
func report(t *testing.T, line any) {
	t.Helper()
	data, err := json.Marshal(line)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", data)
	path := os.Getenv("PENSTOCK_FAULTS_REPORT")
	if path == "" {
		return
	}
	reporting.Lock()
	defer reporting.Unlock()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Write(append(data, '\n')); err != nil {
		t.Fatal(err)
	}
}
