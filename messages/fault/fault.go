// Package fault holds the error classes of penstock and the catalogue of its
// errors. An error is declared once, beside the code that returns it, with a
// stable code, a class and the way to mend it; the call site says what was being
// done and wraps the cause.
package fault

import (
	"errors"
	"fmt"
	"sort"
	"sync"
)

// Class tells what to do about an error.
type Class uint8

// The classes. The zero Class is Retry: what is not known to be hopeless is
// tried again.
const (
	// Retry: an outage or throttling; the same input may succeed later.
	Retry Class = iota
	// Reject: the input can never succeed; it is quarantined.
	Reject
	// Stop: nothing will succeed until somebody changes something (credentials,
	// permissions): stop and alarm, quarantine nothing.
	Stop
)

func (c Class) String() string { return [...]string{"retry", "reject", "stop"}[c] }

// Kind is one entry of the catalogue.
type Kind struct {
	// Code is stable and unique: "stage.what_happened". It is a metric label.
	Code string
	// Class of every error of this kind.
	Class Class
	// Fix tells the operator how to mend it.
	Fix string
}

// Error is one occurrence of a Kind.
type Error struct {
	Kind *Kind
	// Doing says what was being done, in the words of the layer that did it.
	Doing string
	// Cause may be nil.
	Cause error
}

func (e *Error) Error() string {
	s := e.Doing
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	s += " (" + e.Kind.Code
	if e.Kind.Fix != "" {
		s += "; fix: " + e.Kind.Fix
	}
	return s + ")"
}

// Unwrap lets errors.Is and errors.As find both the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Cause}
}

// Error makes a Kind a target for errors.Is.
func (k *Kind) Error() string { return k.Code }

// New makes an error of this kind. cause may be nil.
func (k *Kind) New(cause error, format string, args ...any) error {
	return &Error{Kind: k, Doing: fmt.Sprintf(format, args...), Cause: cause}
}

var (
	mu        sync.Mutex
	catalogue = map[string]*Kind{}
)

// Define adds a kind to the catalogue. It panics when the code is taken: a
// programming mistake, found at start-up.
func Define(code string, class Class, fix string) *Kind {
	mu.Lock()
	defer mu.Unlock()
	if _, taken := catalogue[code]; taken {
		panic("fault: code " + code + " is defined twice")
	}
	k := &Kind{Code: code, Class: class, Fix: fix}
	catalogue[code] = k
	return k
}

// All returns the catalogue, sorted by code.
func All() []*Kind {
	mu.Lock()
	defer mu.Unlock()
	all := make([]*Kind, 0, len(catalogue))
	for _, k := range catalogue {
		all = append(all, k)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Code < all[j].Code })
	return all
}

// ClassOf returns the class of the outermost fault in err, Retry when there is none.
func ClassOf(err error) Class {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind.Class
	}
	return Retry
}

// CodeOf returns the code of the outermost fault in err, "unknown" when there is none.
func CodeOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind.Code
	}
	return "unknown"
}
