package sinks

import (
	"bytes"
	"encoding/hex"
	"time"

	"github.com/penstock/penstock/services/internal/document"
)

// Format is how a sink of lines writes an event.
type Format string

// The formats.
const (
	// Envelope: the document with penstock's id, type, time, source, account and region.
	Envelope Format = "envelope"
	// Document: the bare document.
	Document Format = "document"
)

// Values implements [config.Enum].
func (Format) Values() []string { return []string{string(Envelope), string(Document)} }

// appendLine writes one event as one line of JSON. In an envelope, what is not
// known is "", and null for time; what is sent once more has a member replay. The bytes of the document stay as they are,
// but that one of several lines is put on one.
func (f Format) appendLine(dst []byte, e *Event) []byte {
	if f == Document {
		return append(appendDoc(dst, e.Doc), '\n')
	}
	return append(appendEnvelope(dst, e, `","type":`), '\n')
}

// appendEnvelope writes the document with what penstock knows of the event. typeKey is
// what stands between id and type.
func appendEnvelope(dst []byte, e *Event, typeKey string) []byte {
	dst = append(dst, `{"id":"`...)
	dst = hex.AppendEncode(dst, e.ID[:])
	dst = append(dst, typeKey...)
	dst = document.AppendQuoted(dst, e.Type)
	dst = append(dst, `,"time":`...)
	if e.Time == 0 {
		dst = append(dst, `null`...)
	} else {
		dst = append(dst, '"')
		dst = time.Unix(0, e.Time).UTC().AppendFormat(dst, time.RFC3339Nano)
		dst = append(dst, '"')
	}
	dst = append(dst, `,"source":`...)
	dst = document.AppendQuoted(dst, e.Source)
	dst = append(dst, `,"account":`...)
	dst = document.AppendQuoted(dst, e.Account)
	dst = append(dst, `,"region":`...)
	dst = document.AppendQuoted(dst, e.Region)
	dst = appendReplay(dst, e)
	dst = append(dst, `,"event":`...)
	return append(appendDoc(dst, e.Doc), '}')
}

// appendReplay writes the member replay of an event that is sent once more.
func appendReplay(dst []byte, e *Event) []byte {
	if e.Replay == "" {
		return dst
	}
	return document.AppendQuoted(append(dst, `,"replay":`...), e.Replay)
}

func appendDoc(dst, doc []byte) []byte {
	switch {
	case len(doc) == 0:
		return append(dst, `null`...)
	case bytes.IndexByte(doc, '\n') >= 0 || bytes.IndexByte(doc, '\r') >= 0:
		return document.AppendLine(dst, doc)
	}
	return append(dst, doc...)
}
