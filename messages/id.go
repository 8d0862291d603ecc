package messages

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"strconv"
)

// ID is the dedupe id of an event: the first 16 bytes of a SHA-256. Equal events
// have equal ids wherever, whenever and however often they arrive.
// Source: formats F-0.
type ID [16]byte

// NewID derives an id from parts, e.g. NewID("cloudtrail", eventID). The
// construction is fixed forever, as stored ids depend on it: SHA-256 over every
// part followed by a zero byte and its length as 8 bytes, big endian; so
// ("ab", "c") and ("a", "bc") differ, and so do () and (""). It allocates
// nothing while the parts are below some 400 bytes together.
func NewID(parts ...[]byte) ID {
	var room [512]byte
	return digest(room[:0], parts)
}

// NewPull derives the 16 bytes that identify one announcement of one thing, by
// the construction of NewID, e.g. NewPull("sqs", queueURL, messageID, "0").
func NewPull(parts ...string) []byte {
	var room [512]byte
	id := digest(room[:0], parts)
	return id[:]
}

// MessagePull identifies the part-th thing, from 0, that an SQS message announces
// or holds.
func MessagePull(queue, messageID string, part int) []byte {
	return NewPull("sqs", queue, messageID, strconv.Itoa(part))
}

// EntryPull identifies what comes of an entry of the quarantine when it is redriven: the
// part-th thing, from 0. It follows from the entry alone, so that whoever redrives it,
// and how often, it is one pull.
func EntryPull(entry string, part int) []byte {
	return NewPull("redrive", entry, strconv.Itoa(part))
}

// BatchPull identifies several SQS messages whose records are one frame. ids are
// as View.MessageIDs has them.
func BatchPull(queue string, ids []byte) []byte {
	id := NewID([]byte("sqs messages"), []byte(queue), ids)
	return id[:]
}

// digest hashes parts by way of buf, whose room saves an allocation.
func digest[T []byte | string](buf []byte, parts []T) ID {
	sum := sha256.Sum256(appendParts(buf, parts))
	return ID(sum[:16])
}

// appendParts appends what is hashed of parts.
func appendParts[T []byte | string](dst []byte, parts []T) []byte {
	for _, p := range parts {
		dst = append(dst, p...)
		dst = append(dst, 0)
		dst = binary.BigEndian.AppendUint64(dst, uint64(len(p)))
	}
	return dst
}

// Stem makes the ids of [NewID] for many that begin with the same parts, and hashes
// those once. The zero Stem has no parts. Not for concurrent use.
type Stem struct {
	digest hash.Hash
	state  []byte // of digest, behind the parts
	rest   []byte
	sum    []byte
}

// Reset sets the parts that the ids begin with.
func (s *Stem) Reset(parts ...[]byte) {
	if s.digest == nil {
		s.digest = sha256.New()
	}
	s.digest.Reset()
	s.rest = appendParts(s.rest[:0], parts)
	_, _ = s.digest.Write(s.rest)                                             // never fails
	s.state, _ = s.digest.(encoding.BinaryAppender).AppendBinary(s.state[:0]) //nolint:forcetypeassert // sha256.New says that it is one
}

// ID is NewID of the stem's parts and of rest, which is the last one. It allocates nothing.
func (s *Stem) ID(rest []byte) ID {
	if s.digest == nil {
		s.Reset()
	}
	_ = s.digest.(encoding.BinaryUnmarshaler).UnmarshalBinary(s.state) //nolint:forcetypeassert // as above; never fails with what it wrote
	s.rest = binary.BigEndian.AppendUint64(append(append(s.rest[:0], rest...), 0), uint64(len(rest)))
	_, _ = s.digest.Write(s.rest)
	s.sum = s.digest.Sum(s.sum[:0])
	return ID(s.sum[:16])
}

// Lane returns the dedupe lane of id, 0 ≤ lane < lanes; 0 when lanes is 0. It
// reads the last 4 bytes only, so that within a lane the first 12 stay uniform.
func (id ID) Lane(lanes uint32) uint32 {
	if lanes == 0 {
		return 0
	}
	return binary.BigEndian.Uint32(id[12:]) % lanes
}

// String returns 32 hex digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }
