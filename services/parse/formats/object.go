package formats

import (
	"bytes"

	"github.com/penstock/penstock/services/internal/framing"
)

// This file is what the formats share whose records are JSON objects with known
// keys. The document is the record, byte for byte.

// objectReader reads the values that a format wants of a JSON object. It allocates
// nothing once made. Not for concurrent use.
type objectReader struct {
	scan *scanner
	// what a record is called in errors.
	what             string
	accounts, places names
	parts            [8][]byte
	copies           []byte // of values with escapes, for parts
	// versions judges those of records, for formats that set it; news are what was new in
	// the record at hand.
	versions judge
	news     []News
}

// newObjectReader makes a reader; the index of a path is its slot.
func newObjectReader(what string, paths ...[]string) objectReader {
	return objectReader{scan: newScanner(paths...), what: what}
}

// read begins d with rec, which must be valid JSON.
func (o *objectReader) read(rec []byte, d *Doc) error {
	start, end, why, at := o.scan.scan(rec)
	if why != "" {
		return badJSON(rec, why, at)
	}
	*d = Doc{Body: rec[start:end], Offset: start}
	if !o.scan.valid(rec) {
		d.Odd |= BadUTF8
	}
	return nil
}

// object is read for what must be an object.
func (o *objectReader) object(rec []byte, d *Doc) error {
	if err := o.read(rec, d); err != nil {
		return err
	}
	if d.Body[0] != '{' {
		return errObject.New(nil, "read a %s of %d bytes: it is no JSON object", o.what, len(rec))
	}
	return nil
}

// has tells whether there is a text or a number at slot.
func (o *objectReader) has(slot int) bool {
	k := o.scan.found[slot].kind
	return k == text || k == number
}

// first returns the first of slots that has a text or a number, else the last.
func (o *objectReader) first(slots ...int) int {
	for _, slot := range slots {
		if o.has(slot) {
			return slot
		}
	}
	return slots[len(slots)-1]
}

// begins tells whether an object ('{') or an array ('[') stands at slot.
func (o *objectReader) begins(rec []byte, slot int, c byte) bool {
	f := &o.scan.found[slot]
	return f.kind == other && rec[f.start] == c
}

// is tells whether the text want stands at slot. It is for texts without escapes.
func (o *objectReader) is(rec []byte, slot int, want string) bool {
	f := &o.scan.found[slot]
	return f.kind == text && string(rec[f.start:f.end]) == want
}

// identify makes the id of d of kind and the values at slots. Without the first two
// of them there is no natural id: without the second, what was updated in place
// would be a duplicate of what it was before.
func (o *objectReader) identify(rec []byte, d *Doc, kind []byte, slots ...int) {
	o.copies = o.copies[:0]
	parts := append(o.parts[:0], kind)
	for i, slot := range slots {
		v := o.keep(rec, slot)
		if i < 2 && len(v) == 0 {
			d.Odd |= NoID
			return
		}
		parts = append(parts, v)
	}
	d.ID, d.HasID = newID(parts...), true
}

// keep is scanner.value with a copy that stays until the next record.
func (o *objectReader) keep(rec []byte, slot int) []byte {
	f := &o.scan.found[slot]
	switch {
	case f.kind != text && f.kind != number:
		return nil
	case !f.escaped:
		return rec[f.start:f.end]
	}
	from := len(o.copies)
	o.copies = unescape(o.copies, rec[f.start:f.end])
	return o.copies[from:len(o.copies):len(o.copies)]
}

// time reads the RFC 3339 time at slot into d.
func (o *objectReader) time(rec []byte, d *Doc, slot int) {
	if o.scan.found[slot].kind == absent {
		d.Odd |= NoTime
		return
	}
	if d.Time, d.HasTime = parseTime(o.scan.textAt(rec, slot)); !d.HasTime {
		d.Odd |= BadTime
	}
}

// epoch reads the number of a unit since 1970 at slot into d. below is that of
// digitsBelow.
func (o *objectReader) epoch(rec []byte, d *Doc, slot, below int) {
	if o.scan.found[slot].kind == absent {
		d.Odd |= NoTime
		return
	}
	if d.Time, d.HasTime = parseEpoch(o.scan.value(rec, slot), below); !d.HasTime {
		d.Odd |= BadTime
	}
}

// account and region return the name at slot, "" where there is none.
func (o *objectReader) account(rec []byte, slot int) string {
	return o.accounts.of(o.scan.value(rec, slot))
}

func (o *objectReader) region(rec []byte, slot int) string {
	return o.places.of(o.scan.textAt(rec, slot))
}

// version judges the version at slot.
func (o *objectReader) version(rec []byte, d *Doc, slot int) {
	if o.versions.known == nil {
		return
	}
	var isNew bool
	if o.news, isNew = o.versions.meet(o.news[:0], o.scan.value(rec, slot)); isNew {
		d.Odd |= NewVersion
	}
	d.New = o.news
}

// arn reads account and region off the ARN at slot where d has none.
// Source: AWS General Reference, arn:partition:service:region:account:resource.
func (o *objectReader) arn(rec []byte, d *Doc, slot int) {
	v := o.scan.textAt(rec, slot)
	if !bytes.HasPrefix(v, []byte("arn:")) {
		return
	}
	for field := 1; field <= 4; field++ {
		colon := bytes.IndexByte(v, ':')
		if colon < 0 {
			return
		}
		v = v[colon+1:]
		end := bytes.IndexByte(v, ':')
		if end < 0 {
			return
		}
		if field == 3 && d.Region == "" {
			d.Region = o.places.of(v[:end])
		}
		if field == 4 && d.Account == "" {
			d.Account = o.accounts.of(v[:end])
		}
	}
}

// appendFlat appends word with the dots in it as _, so that it is one word of an
// event type.
func appendFlat(dst, word []byte) []byte {
	from := len(dst)
	dst = append(dst, word...)
	for i, c := range dst[from:] {
		if c == '.' {
			dst[from+i] = '_'
		}
	}
	return dst
}

// anyJSON is the framing of JSON objects, however they follow one another.
func anyJSON([]byte) framing.Framing { return framing.Framing{Kind: framing.Auto} }

// firstKeys returns the first record of what begins with head, in an array or not.
func firstRecord(head []byte) []byte {
	rec, _ := first(head)
	return rec
}

// hasKeys tells whether the first record of head has at least least of keys.
func hasKeys(head []byte, least int, keys ...string) bool {
	return countKeys(firstRecord(head), func(key string) bool {
		for _, k := range keys {
			if k == key {
				return true
			}
		}
		return false
	}) >= least
}

// envelope is what tells of an EventBridge envelope from its first bytes.
type envelope struct {
	is bool
	// source as it stands between its quotes, "" where head does not reach it.
	source string
}

// envelopeOf looks for an envelope where the first record of head begins.
func envelopeOf(head []byte) (e envelope) {
	hits := 0
	peek(firstRecord(head), func(key string, rest []byte) bool {
		switch key {
		case "detail-type", "detail":
			hits++
		case "source":
			if len(rest) > 0 && rest[0] == '"' {
				if end := bytes.IndexByte(rest[1:], '"'); end >= 0 {
					e.source = string(rest[1 : 1+end])
				}
			}
		}
		return true
	})
	e.is = hits == 2
	return e
}
