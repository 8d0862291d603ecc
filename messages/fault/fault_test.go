package fault

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

var (
	errLost = Define("test.lost", Retry, "plug it in")
	errBad  = Define("test.bad", Reject, "")
	errKey  = Define("test.key", Stop, "renew the key")
)

func TestErrorText(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"cause and fix", errLost.New(io.ErrUnexpectedEOF, "read %s", "it"), "read it: unexpected EOF (test.lost; fix: plug it in)"},
		{"no cause", errLost.New(nil, "read it"), "read it (test.lost; fix: plug it in)"},
		{"no fix", errBad.New(nil, "read it"), "read it (test.bad)"},
		{
			"a fault as the cause", errKey.New(errBad.New(io.EOF, "parse"), "fetch"),
			"fetch: parse: EOF (test.bad) (test.key; fix: renew the key)",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.err.Error(); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestKindAndCauseAreFound(t *testing.T) {
	err := fmt.Errorf("stage: %w", errLost.New(io.EOF, "read it"))
	for _, target := range []error{errLost, io.EOF} {
		if !errors.Is(err, target) {
			t.Errorf("%v is not found", target)
		}
	}
	if errors.Is(err, errBad) || errors.Is(errBad.New(nil, "x"), io.EOF) {
		t.Error("found what is not there")
	}
}

func TestClassAndCode(t *testing.T) {
	tests := []struct {
		name  string
		err   error
		class Class
		code  string
	}{
		{"no error", nil, Retry, "unknown"},
		{"no fault", io.EOF, Retry, "unknown"},
		{"a fault", errBad.New(nil, "x"), Reject, "test.bad"},
		{"a wrapped fault", fmt.Errorf("y: %w", errKey.New(nil, "x")), Stop, "test.key"},
		{"the outermost of two", errKey.New(errBad.New(nil, "x"), "y"), Stop, "test.key"},
		{"the first of several joined", errors.Join(io.EOF, errBad.New(nil, "x"), errKey.New(nil, "y")), Reject, "test.bad"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := ClassOf(tt.err); got != tt.class {
				t.Errorf("class %s, want %s", got, tt.class)
			}
			if got := CodeOf(tt.err); got != tt.code {
				t.Errorf("code %s, want %s", got, tt.code)
			}
		})
	}
}

func TestClassNames(t *testing.T) {
	for class, want := range map[Class]string{Retry: "retry", Reject: "reject", Stop: "stop"} {
		if class.String() != want {
			t.Errorf("class %d is %q, want %q", class, class, want)
		}
	}
}

func TestCatalogue(t *testing.T) {
	all := All()
	if !slices.IsSortedFunc(all, func(a, b *Kind) int { return strings.Compare(a.Code, b.Code) }) {
		t.Error("the catalogue is not sorted by code")
	}
	for _, want := range []*Kind{errLost, errBad, errKey} {
		if !slices.Contains(all, want) {
			t.Errorf("%s is not in the catalogue", want.Code)
		}
	}
	all[0] = nil // a copy: the catalogue stays as it is
	if All()[0] == nil {
		t.Error("All hands out the catalogue itself")
	}
}

func TestCodesAreUnique(t *testing.T) {
	defer func() {
		if got := recover(); got != "fault: code test.lost is defined twice" {
			t.Errorf("panic %v", got)
		}
		if kept := All(); !slices.Contains(kept, errLost) {
			t.Error("the first definition is gone")
		}
	}()
	Define("test.lost", Reject, "")
}
