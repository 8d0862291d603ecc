package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/url"
)

// encodeHarmless writes v as JSON in which nothing controls a terminal. JSON itself only
// escapes control characters of seven bits.
func encodeHarmless(w io.Writer, v any, set func(*json.Encoder)) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	set(e)
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(harmless(b.Bytes()))
	return err
}

// harmlessLines makes each write of JSON harmless to a terminal.
type harmlessLines struct{ to io.Writer }

// Write implements io.Writer. A write is one or more whole lines.
func (h harmlessLines) Write(p []byte) (int, error) {
	if _, err := h.to.Write(harmless(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// withoutAddress is what went wrong at an address without the address, which may hold a
// password or a token.
func withoutAddress(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
