package formats

import (
	"context"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/tag"
)

var errProcessor = fault.Define("parse.bad_processor", fault.Stop,
	"name a format in event_type_processor_mapping that `penstock formats` lists, other than auto")

// maxWords bounds the words that a decoder remembers the table of.
const maxWords = 4096

// inTables lets the events of f, which was opened with options, have the tables that
// deps.Tag says.
func inTables(ctx context.Context, f Format, name string, options any, deps Deps) (Format, error) {
	if deps.Tag == nil {
		return f, nil
	}
	names := tag.NewNames(*deps.Tag, deps.Source, f.Base, f.Table)
	if names.Own() {
		return f, nil
	}
	if single := names.Single(); single != "" && names.Format(single) == "" {
		// Words of documents that nobody will see take no room from others.
		alone := deps
		alone.Types = NewTypes(1)
		inner, err := known.Open(ctx, name, options, alone)
		if err != nil {
			return f, err
		}
		table := names.Table(single)
		f.New = func() Decoder { return &oneTable{follower{inner.New()}, table} }
		return f, nil
	}
	others := map[string]Format{}
	for _, other := range names.Formats() {
		if !Known(other) {
			return f, errProcessor.New(nil, "read events of one type as %q", other)
		}
		plain := deps
		plain.Tag = nil
		opened, err := Open(ctx, other, nil, plain)
		if err != nil {
			return f, err
		}
		others[other] = opened
		f.Grows = max(f.Grows, opened.Grows)
	}
	inner := f.New
	f.New = func() Decoder {
		t := &tables{follower: follower{inner()}, names: names, types: deps.Types, base: f.Base, others: map[string]Decoder{}, idle: map[string]bool{}}
		if path := names.Field(); path != nil {
			t.scan = newScanner(path)
		}
		for other, opened := range others {
			t.others[other] = opened.New()
		}
		return t
	}
	return f, nil
}

// follower hands Start on to a decoder that wants it.
type follower struct{ Decoder }

// Start implements Starter.
func (f follower) Start(h Head) error {
	if s, ok := f.Decoder.(Starter); ok {
		return s.Start(h)
	}
	return nil
}

// oneTable gives all events one table.
type oneTable struct {
	follower

	table string
}

// Decode implements Decoder.
func (o *oneTable) Decode(rec []byte, d *Doc) error {
	err := o.Decoder.Decode(rec, d)
	d.Type, d.Odd = o.table, d.Odd&^(NoType|TypeLimit)
	return err
}

// tables gives each event the table of its word.
type tables struct {
	follower

	names  *tag.Names
	types  *Types
	base   string
	scan   *scanner // for the field that tells the word, nil for none
	byKey  string   // the word of the object, "" for none
	others map[string]Decoder
	idle   map[string]bool // those of others that refuse all records of this frame
	known  map[string]entry
}

// entry is what became of a word, or of the value of the field.
type entry struct {
	table  string
	format string
	odd    Odd
}

// Start implements Starter.
func (t *tables) Start(h Head) error {
	t.byKey = t.names.FromKey(h.Key)
	clear(t.idle)
	for name, other := range t.others {
		if s, ok := other.(Starter); ok && s.Start(h) != nil {
			t.idle[name] = true
		}
	}
	return t.follower.Start(h)
}

// Decode implements Decoder.
func (t *tables) Decode(rec []byte, d *Doc) error {
	if err := t.Decoder.Decode(rec, d); err != nil {
		return err
	}
	e := t.entry(d)
	if other := t.others[e.format]; other != nil && !t.idle[e.format] {
		// What it refuses stays as the source's format reads it.
		first := *d
		if err := other.Decode(rec, d); err != nil {
			*d = first
		}
	}
	d.Type, d.Odd = e.table, d.Odd&^(NoType|TypeLimit)|e.odd
	return nil
}

// entry looks up what tells the table of d: the field, the key, or the event type
// that the format has made.
func (t *tables) entry(d *Doc) entry {
	switch {
	case t.names.Single() != "":
		return t.of([]byte(t.names.Single()), false)
	case t.scan != nil:
		if _, _, why, _ := t.scan.scan(d.Body); why != "" {
			return t.of(nil, true)
		}
		return t.of(t.scan.value(d.Body, 0), true)
	case t.byKey != "":
		return t.of([]byte(t.byKey), false)
	}
	return t.own(d)
}

// own is entry for the format's event type.
func (t *tables) own(d *Doc) entry {
	if e, ok := t.known[d.Type]; ok {
		e.odd = d.Odd & (NoType | TypeLimit)
		return e
	}
	e := t.make(t.names.Word(d.Type), d.Odd&(NoType|TypeLimit))
	t.keep(d.Type, e)
	return e
}

// of is entry for a word, or a value of the field.
func (t *tables) of(value []byte, field bool) entry {
	if e, ok := t.known[string(value)]; ok {
		return e
	}
	if len(value) > maxNameSize {
		value = value[:maxNameSize]
	}
	word := string(value)
	if field {
		word = t.names.FromField(word)
	}
	odd := Odd(0)
	if field && len(value) == 0 {
		odd = NoType
	}
	e := t.make(word, odd)
	t.keep(string(value), e)
	return e
}

// make names the table for word, as long as there is room for one more.
func (t *tables) make(word string, odd Odd) entry {
	e := entry{table: t.types.find([]byte(t.names.Table(word))), format: t.names.Format(word), odd: odd}
	if e.table == "" {
		e.table, e.odd = t.names.Table("other"), e.odd|TypeLimit
	}
	return e
}

func (t *tables) keep(key string, e entry) {
	if len(t.known) >= maxWords || t.known == nil {
		t.known = map[string]entry{}
	}
	t.known[key] = e
}
