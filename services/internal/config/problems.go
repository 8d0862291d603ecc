package config

import (
	"errors"
	"sort"
	"strconv"
	"strings"

	"github.com/penstock/penstock/messages/fault"
)

var errInvalid = fault.Define("config.invalid", fault.Stop,
	"mend every line that is named, then look again: penstock config check")

// Code tells what sort of problem a [Problem] is. Codes are stable: JSON output
// and tests rely on them.
type Code string

// The codes. Source: features DEV-148 to DEV-163.
const (
	// Syntax: the document is not YAML, or uses a part of YAML that is refused.
	Syntax Code = "config.syntax"
	// UnknownKey: nothing reads this key.
	UnknownKey Code = "config.unknown_key"
	// RepeatedKey: a key stands twice in one mapping.
	RepeatedKey Code = "config.repeated_key"
	// WrongType: a list where a number belongs, and the like.
	WrongType Code = "config.wrong_type"
	// OutOfRange: the number does not fit.
	OutOfRange Code = "config.out_of_range"
	// Missing: a key that must be there is absent or empty.
	Missing Code = "config.missing"
	// Invalid: the value was understood and refused.
	Invalid Code = "config.invalid_value"
	// Reference: a ${...} cannot be resolved.
	Reference Code = "config.bad_reference"
	// TooLarge: a limit on size, depth or aliases was met.
	TooLarge Code = "config.too_large"
)

// Problem is one thing that is wrong in a configuration.
type Problem struct {
	Code Code `json:"code"`
	// File is the name given to [Parse]; empty outside of a file.
	File string `json:"file,omitempty"`
	// Line and Column count from 1; 0 when the place is not known.
	Line   int `json:"line,omitempty"`
	Column int `json:"column,omitempty"`
	// Path of the key, e.g. destinations[0].url.
	Path string `json:"path,omitempty"`
	// Value as it is written in the file, shortened; "[redacted]" for a secret.
	// References are not resolved in it.
	Value string `json:"value,omitempty"`
	// Reason says what is wrong.
	Reason string `json:"reason"`
	// Fix says what to do.
	Fix string `json:"fix,omitempty"`
}

// String formats p as "file:line:column: path: value: reason; fix: fix".
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			b.WriteString(":" + strconv.Itoa(p.Line) + ":" + strconv.Itoa(p.Column))
		}
		b.WriteString(": ")
	}
	for _, s := range []string{p.Path, p.Value} {
		if s != "" {
			b.WriteString(s + ": ")
		}
	}
	b.WriteString(p.reason())
	if p.Fix != "" {
		b.WriteString("; fix: " + p.Fix)
	}
	return b.String()
}

func (p Problem) reason() string {
	if p.Reason == "" {
		return "not acceptable"
	}
	return p.Reason
}

// Error holds every problem found in one go. It marshals to JSON as
// {"problems": [...]}.
type Error struct {
	Problems []Problem `json:"problems"`
}

// Error prints one problem a line.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the error its place in the fault catalogue.
func (e *Error) Unwrap() error {
	return &fault.Error{Kind: errInvalid, Doing: "check the configuration"}
}

// Problems collects what a Validate method finds. The zero value is ready.
type Problems struct {
	list []Problem
}

// Need adds a problem with key unless ok. Key is relative to the struct that is
// validated, e.g. "url" or "tls.ca_file".
func (p *Problems) Need(ok bool, key, fix string) {
	if !ok {
		p.list = append(p.list, Problem{Code: Invalid, Path: key, Fix: fix})
	}
}

// Add adds a problem with key: why says what is wrong, fix what to do.
func (p *Problems) Add(key, why, fix string) {
	p.list = append(p.list, Problem{Code: Invalid, Path: key, Reason: why, Fix: fix})
}

// In adds what a check of a part of the struct found, below key. Nil is nothing.
func (p *Problems) In(key string, err error) {
	for _, q := range problemsIn(err) {
		q.Path = joinPath(key, q.Path)
		p.list = append(p.list, q)
	}
}

// Err returns all problems as an [*Error], nil when there are none.
func (p *Problems) Err() error {
	if len(p.list) == 0 {
		return nil
	}
	return newError(p.list)
}

// problemsIn takes err apart. An error that is not from this package becomes one
// problem without a path.
func problemsIn(err error) []Problem {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		if _, isFault := err.(*fault.Error); !isFault { //nolint:errorlint // err itself, not its causes
			var all []Problem
			for _, e := range joined.Unwrap() {
				all = append(all, problemsIn(e)...)
			}
			return all
		}
	}
	var e *Error
	if errors.As(err, &e) {
		return append([]Problem(nil), e.Problems...)
	}
	return []Problem{{Code: Invalid, Reason: err.Error()}}
}

// newError sorts by place and drops what is there twice.
func newError(list []Problem) *Error {
	seen := make(map[Problem]bool, len(list))
	out := make([]Problem, 0, len(list))
	for _, p := range list {
		if !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	sort.SliceStable(out, func(i, j int) bool {
		if out[i].Line != out[j].Line {
			return out[i].Line < out[j].Line
		}
		return out[i].Column < out[j].Column
	})
	return &Error{Problems: out}
}

// joinPath puts a relative path below another one.
func joinPath(base, rel string) string {
	switch {
	case base == "":
		return rel
	case rel == "", rel[0] == '[':
		return base + rel
	}
	return base + "." + rel
}
