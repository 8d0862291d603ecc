package condition

import (
	"slices"
	"strings"

	"github.com/penstock/penstock/messages/fault"
)

var errPattern = fault.Define("condition.bad_type_pattern", fault.Stop,
	"use dotted words of letters, digits, - and _; * stands for one word, > at the end for one or more")

// Types is a set of event types, given by patterns. The zero Types holds all.
type Types struct{ patterns [][]string }

// ParseTypes reads patterns with the wildcards of NATS subjects: * is one word,
// > at the end one or more. None means every type.
func ParseTypes(patterns []string) (Types, error) {
	var t Types
	for _, p := range patterns {
		words := strings.Split(p, ".")
		for i, w := range words {
			if w == "*" || w == ">" && i == len(words)-1 {
				continue
			}
			if !isWord(w) {
				return Types{}, errPattern.New(nil, "read the event type pattern %q", p)
			}
		}
		t.patterns = append(t.patterns, words)
	}
	return t, nil
}

// IsType reports whether s is an event type: dotted words without wildcards.
func IsType(s string) bool {
	for w := range strings.SplitSeq(s, ".") {
		if !isWord(w) {
			return false
		}
	}
	return true
}

func isWord(w string) bool {
	for _, r := range w {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' {
			return false
		}
	}
	return w != ""
}

// Has reports whether eventType is in the set. It allocates nothing.
func (t Types) Has(eventType string) bool {
	for _, p := range t.patterns {
		if matches(p, eventType) {
			return true
		}
	}
	return len(t.patterns) == 0
}

func matches(words []string, eventType string) bool {
	rest, more := eventType, true
	for _, w := range words {
		if !more {
			return false
		}
		if w == ">" {
			return rest != ""
		}
		var word string
		word, rest, more = strings.Cut(rest, ".")
		if w != "*" && w != word {
			return false
		}
	}
	return !more
}

// Narrow returns the patterns of what is in both of two lists, of which an empty one holds
// all, and false when there can be nothing. The patterns must be well formed.
func Narrow(a, b []string) ([]string, bool) {
	if len(a) == 0 || len(b) == 0 {
		return append(slices.Clone(a), b...), true
	}
	var both []string
	for _, x := range a {
		for _, y := range b {
			if t, ok := Both(x, y); ok {
				both = append(both, t)
			}
		}
	}
	return both, len(both) > 0
}

// Both returns the pattern that holds the types which fit both patterns, and false
// when there can be none. The patterns must be well formed.
func Both(a, b string) (string, bool) {
	var words []string
	for {
		wordA, restA, moreA := strings.Cut(a, ".")
		wordB, restB, moreB := strings.Cut(b, ".")
		switch {
		case wordA == ">":
			return strings.Join(append(words, b), "."), true
		case wordB == ">":
			return strings.Join(append(words, a), "."), true
		case wordA == "*":
			words = append(words, wordB)
		case wordB == "*" || wordA == wordB:
			words = append(words, wordA)
		default:
			return "", false
		}
		if moreA != moreB {
			return "", false
		}
		if !moreA {
			return strings.Join(words, "."), true
		}
		a, b = restA, restB
	}
}
