package sinks

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/topology"
)

var (
	errConsumerName = fault.Define("deliver.consumer_name", fault.Reject,
		"use names of 1 to 64 letters, digits, - and _")
	errConsumerThere = fault.Define("deliver.consumer_exists", fault.Reject,
		"choose another name, or revoke the key that is in use: penstock consumers revoke")
	errConsumerUnknown = fault.Define("deliver.consumer_unknown", fault.Reject,
		"see who there is: penstock consumers list")
	errConsumerEntry = fault.Define("deliver.consumer_entry", fault.Reject,
		"report it: it is a mistake in penstock, or something else writes to the bucket of consumers")
	errPlace = fault.Define("deliver.bad_cursor", fault.Reject,
		"use a cursor as it came in Penstock-Cursor")
)

// indexDigits hold the largest index of an event in a frame.
const indexDigits = 7

const _ = uint(9_999_999 - messages.MaxCount) // they do

// String writes the place as a cursor: digits alone, of which those of later places
// come later, also when they are compared as text.
func (p Place) String() string { return fmt.Sprintf("%012d%0*d", p.Sequence, indexDigits, p.Index) }

// ParsePlace reads a cursor.
func ParsePlace(s string) (Place, error) {
	digits := strings.Trim(s, "0123456789") == ""
	if len(s) < 12+indexDigits || len(s) > 20+indexDigits || !digits {
		return Place{}, errPlace.New(nil, "read a cursor of %d characters", len(s))
	}
	at := len(s) - indexDigits
	sequence, err := strconv.ParseUint(s[:at], 10, 64)
	index, indexErr := strconv.Atoi(s[at:])
	if err := errors.Join(err, indexErr); err != nil || index > messages.MaxCount {
		return Place{}, errPlace.New(nil, "read a cursor of %d characters", len(s))
	}
	return Place{sequence, index}, nil
}

// Before tells whether p comes before q.
func (p Place) Before(q Place) bool {
	return p.Sequence < q.Sequence || p.Sequence == q.Sequence && p.Index < q.Index
}

// MarshalText implements [encoding.TextMarshaler].
func (p Place) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (p *Place) UnmarshalText(text []byte) (err error) {
	*p, err = ParsePlace(string(text))
	return err
}

// Consumer is one who may fetch events from a destination of kind webhook_pull.
type Consumer struct {
	Name string `json:"name"`
	// ID is the part of the key by which it is found. Hash is the SHA-256 of the whole
	// key, as hex: a key has 256 random bits, which no slower hash makes safer.
	ID   string `json:"id"`
	Hash string `json:"hash,omitempty"`
	// Streams that may be fetched; none means all.
	Streams []string  `json:"streams,omitempty"`
	Created time.Time `json:"created"`
	// Expires and Revoked are zero when they do not, or have not been.
	Expires time.Time `json:"expires,omitzero"`
	Revoked time.Time `json:"revoked,omitzero"`
}

// Position is how far a consumer is in a stream.
type Position struct {
	// Acked is what is behind the consumer for good, Served what it was given.
	Acked  Place `json:"acked"`
	Served Place `json:"served"`
	// Last is what was acknowledged last, and may be again; Acked is ahead of it where no
	// rows lie between.
	Last Place `json:"last"`
	// Rewound is what was served before an operator moved the position; nil once a
	// consumer has acknowledged something since.
	Rewound *Place `json:"rewound,omitempty"`
	// Holder is the request that is being answered, Beat a number that grows meanwhile.
	Holder string `json:"holder,omitempty"`
	Beat   uint64 `json:"beat,omitempty"`
	// Seen is when the consumer was last there, Address where from.
	Seen    time.Time `json:"seen,omitzero"`
	Address string    `json:"address,omitempty"`
	// Subjects of the stream on the bus, for those who have no configuration.
	Subjects []string `json:"subjects,omitempty"`
}

// Standing is a consumer with its positions, by stream.
type Standing struct {
	Consumer

	Positions map[string]Position `json:"positions"`
}

// Register is where consumers and their positions are kept: [topology.Register].
type Register interface {
	Get(ctx context.Context, path string) (topology.Entry, error)
	Put(ctx context.Context, e topology.Entry, value []byte) (topology.Entry, error)
	List(ctx context.Context, path string) ([]topology.Entry, error)
	Watch(ctx context.Context, path string, f func(topology.Entry), known func()) error
}

// Consumers are those of one destination. Its methods may be called concurrently.
type Consumers struct {
	register    Register
	destination string
}

// NewConsumers opens those of a destination.
func NewConsumers(r Register, destination string) *Consumers { return &Consumers{r, destination} }

const (
	keyPrefix = "penstock_"
	keyParts  = "key"
	atParts   = "at"
	// keyLength is that of a key: the prefix, 8 bytes of id, _, and 32 bytes, as hex.
	keyLength = len(keyPrefix) + 16 + 1 + 64
)

var goodConsumer = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func (c *Consumers) keyPath(name string) string {
	return topology.RegisterPath(c.destination, keyParts, name)
}

func (c *Consumers) positionPath(name, stream string) string {
	return topology.RegisterPath(c.destination, atParts, name, stream)
}

// Add makes a consumer and returns its key, which is stored nowhere. The name of one
// that was revoked may be used again: the new key goes on where the old one was.
// Errors: deliver.consumer_name, deliver.consumer_exists.
func (c *Consumers) Add(ctx context.Context, name string, streams []string, expires time.Time) (string, error) {
	for _, n := range append([]string{name}, streams...) {
		if !goodConsumer.MatchString(n) {
			return "", errConsumerName.New(nil, "add the consumer %.80q for %.80q", name, streams)
		}
	}
	e, err := c.register.Get(ctx, c.keyPath(name))
	if err != nil {
		return "", err
	}
	if e.Value != nil {
		var before Consumer
		if err := json.Unmarshal(e.Value, &before); err != nil || before.Revoked.IsZero() {
			return "", errConsumerThere.New(err, "add the consumer %s of destination %s", name, c.destination)
		}
	}
	var random [40]byte
	_, _ = rand.Read(random[:]) // never fails (crypto/rand)
	consumer := Consumer{Name: name, ID: hex.EncodeToString(random[:8]), Streams: streams, Created: time.Now().UTC().Truncate(time.Second), Expires: expires.UTC()}
	key := keyPrefix + consumer.ID + "_" + hex.EncodeToString(random[8:])
	sum := sha256.Sum256([]byte(key))
	consumer.Hash = hex.EncodeToString(sum[:])
	value, _ := json.Marshal(consumer) // cannot fail
	if _, err := c.register.Put(ctx, e, value); err != nil {
		return "", err
	}
	return key, nil
}

// Revoke makes the key of a consumer worthless, on all replicas within seconds. Its
// positions stay. Errors: deliver.consumer_unknown.
func (c *Consumers) Revoke(ctx context.Context, name string) error {
	return c.again(ctx, func() error {
		e, err := c.register.Get(ctx, c.keyPath(name))
		if err != nil {
			return err
		}
		consumer := Consumer{Name: name}
		if e.Value == nil {
			return errConsumerUnknown.New(nil, "revoke the key of consumer %.80q of destination %.80q", name, c.destination)
		}
		// An entry that cannot be read must go, too.
		_ = json.Unmarshal(e.Value, &consumer)
		if consumer.Revoked.IsZero() {
			consumer.Revoked = time.Now().UTC().Truncate(time.Second)
		}
		consumer.Hash = ""
		value, _ := json.Marshal(consumer) // cannot fail
		_, err = c.register.Put(ctx, e, value)
		return err
	})
}

// again repeats what somebody else was faster at.
func (c *Consumers) again(ctx context.Context, f func() error) error {
	var err error
	for range 20 {
		if err = f(); !errors.Is(err, topology.ErrEntryMoved) || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// List returns all consumers by name, those whose keys were revoked among them.
func (c *Consumers) List(ctx context.Context) ([]Standing, error) {
	entries, err := c.register.List(ctx, topology.RegisterPath(c.destination))
	if err != nil {
		return nil, err
	}
	by := map[string]*Standing{}
	of := func(name string) *Standing {
		if by[name] == nil {
			by[name] = &Standing{Consumer: Consumer{Name: name}, Positions: map[string]Position{}}
		}
		return by[name]
	}
	for _, e := range entries {
		parts := strings.Split(e.Path, ".")
		switch {
		case len(parts) == 3 && parts[1] == keyParts:
			if err := json.Unmarshal(e.Value, &of(parts[2]).Consumer); err != nil {
				return nil, errConsumerEntry.New(err, "read the entry %s", e.Path)
			}
		case len(parts) == 4 && parts[1] == atParts:
			var p Position
			if err := json.Unmarshal(e.Value, &p); err != nil {
				return nil, errConsumerEntry.New(err, "read the entry %s", e.Path)
			}
			of(parts[2]).Positions[parts[3]] = p
		}
	}
	var all []Standing
	for _, s := range by {
		if s.ID != "" { // else there are but positions, of one that never was
			all = append(all, *s)
		}
	}
	slices.SortFunc(all, func(a, b Standing) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// Rewind moves the position of a consumer in a stream to a place, back or ahead. What
// it acknowledges of what it got before is passed over.
func (c *Consumers) Rewind(ctx context.Context, name, stream string, to Place) error {
	if !goodConsumer.MatchString(stream) {
		return errConsumerName.New(nil, "rewind the stream %.80q", stream)
	}
	consumer, err := c.register.Get(ctx, c.keyPath(name))
	if err != nil {
		return err
	}
	if consumer.Value == nil {
		return errConsumerUnknown.New(nil, "rewind the consumer %.80q of destination %.80q", name, c.destination)
	}
	return c.again(ctx, func() error {
		e, err := c.register.Get(ctx, c.positionPath(name, stream))
		if err != nil {
			return err
		}
		var p Position
		if e.Value != nil {
			if err := json.Unmarshal(e.Value, &p); err != nil {
				return errConsumerEntry.New(err, "read the entry %s", e.Path)
			}
		}
		rewound := p.Served
		if p.Rewound != nil && rewound.Before(*p.Rewound) {
			rewound = *p.Rewound
		}
		// Who is being answered is told that the position has moved.
		p.Acked, p.Served, p.Last, p.Rewound, p.Holder = to, to, to, &rewound, ""
		value, _ := json.Marshal(p) // cannot fail
		_, err = c.register.Put(ctx, e, value)
		return err
	})
}

// book is what a replica knows of the consumers from watching the register. It may be
// used concurrently.
type book struct {
	mu        sync.RWMutex
	known     bool
	keys      map[string]Consumer // by ID
	ids       map[string]string   // by path
	positions map[string]sighting // by path
}

// sighting is a position as it was seen last, and when that was, by our clock: holders
// are known to be gone by that nothing changes, so clocks may differ.
type sighting struct {
	consumer, stream string
	revision         uint64
	at               time.Time
	position         Position
}

func newBook() *book {
	return &book{keys: map[string]Consumer{}, ids: map[string]string{}, positions: map[string]sighting{}}
}

// saw takes over a change.
func (b *book) saw(e topology.Entry, now time.Time) {
	parts := strings.Split(e.Path, ".")
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case len(parts) == 3 && parts[1] == keyParts:
		delete(b.keys, b.ids[e.Path])
		var c Consumer
		if json.Unmarshal(e.Value, &c) == nil && c.Revoked.IsZero() && c.Name == parts[2] {
			b.keys[c.ID], b.ids[e.Path] = c, c.ID
		}
	case len(parts) == 4 && parts[1] == atParts:
		s := sighting{consumer: parts[2], stream: parts[3], revision: e.Revision, at: now}
		if json.Unmarshal(e.Value, &s.position) == nil {
			b.positions[e.Path] = s
		} else {
			delete(b.positions, e.Path)
		}
	}
}

func (b *book) complete() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known = true
}

func (b *book) ready() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.known
}

// find returns the consumer of a key. It compares with something in any case, and in
// the same time.
func (b *book) find(key string) (Consumer, bool) {
	sum := sha256.Sum256([]byte(key))
	rest, _ := strings.CutPrefix(key, keyPrefix)
	id, _, _ := strings.Cut(rest, "_")
	b.mu.RLock()
	c, there := b.keys[id]
	b.mu.RUnlock()
	want, err := hex.DecodeString(c.Hash)
	if !there || err != nil || len(want) != len(sum) {
		want, there = make([]byte, len(sum)), false
	}
	same := subtle.ConstantTimeCompare(sum[:], want) == 1
	return c, same && there && len(key) == keyLength
}

// valid tells whether the key of a consumer still is good.
func (b *book) valid(c Consumer, now time.Time) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	_, there := b.keys[c.ID]
	return there && (c.Expires.IsZero() || now.Before(c.Expires))
}

// expired tells whether whoever holds a position has not been heard of for so long
// that it is gone.
func (b *book) expired(e topology.Entry, now time.Time) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	s, there := b.positions[e.Path]
	return there && s.revision == e.Revision && now.Sub(s.at) >= holdExpiry
}

// standing returns the positions of those whose keys are good.
func (b *book) standing() []sighting {
	b.mu.RLock()
	defer b.mu.RUnlock()
	live := map[string]bool{}
	for _, c := range b.keys {
		live[c.Name] = true
	}
	var all []sighting
	for _, s := range b.positions {
		if live[s.consumer] {
			all = append(all, s)
		}
	}
	return all
}
