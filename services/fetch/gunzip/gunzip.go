// Package gunzip decompresses gzip, one member after the other, into the buffer of
// who reads it.
//
//	stored bytes ──▶ gunzip ──▶ raw bytes, behind those that came before
//
// In:     a [*bufio.Reader] at the beginning of a member. Nothing behind the member
// is taken out of it.
// Out:    the raw bytes, all that are whole where the input ends too early. The
// caller keeps the last [History] of them in front of the next ones: that is the
// window of the format, so that no byte is copied out of one.
// Errors: [io.ErrUnexpectedEOF], [gzip.ErrHeader], [gzip.ErrChecksum] and
// [flate.CorruptInputError], as of the standard library, and those of the input.
// State:  the tables of the block in hand.
// Source: RFC 1951 (DEFLATE), RFC 1952 (gzip).
package gunzip

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"io"
)

const (
	// History is how far back a match reaches, and so how much of what came before
	// must stand before the place that Fill writes to. Unit: bytes.
	History = 32 << 10
	// MinRoom is how much room Fill needs. Unit: bytes.
	MinRoom = 512
)

// Reader decompresses members. Not for concurrent use.
type Reader struct {
	flate  inflater
	digest uint32
	size   uint32
	err    error
}

// The flags of a header. Source: RFC 1952, 2.3.1.
const (
	hasDigest  = 1 << 1
	hasExtra   = 1 << 2
	hasName    = 1 << 3
	hasComment = 1 << 4
	reserved   = 0xe0
	// maxText is the longest name or comment, with the zero behind it, as of other
	// readers. Unit: bytes.
	maxText = 512
	// leastBuffer is what every bufio.Reader can hold. Unit: bytes.
	leastBuffer = 16
)

// Reset begins with the member at which src stands, and reads its header. The error
// is io.EOF where src is at its end.
func (z *Reader) Reset(src *bufio.Reader) error {
	z.digest, z.size = 0, 0
	z.err = z.header(src)
	z.flate.begin(src)
	return z.err
}

// Release forgets the input, so that the Reader can wait in a pool.
func (z *Reader) Release() { z.flate.begin(nil) }

// header steps over the header.
func (z *Reader) header(src *bufio.Reader) error {
	digest := uint32(0)
	next := func(n int) ([]byte, error) {
		b, err := src.Peek(n)
		if err == nil {
			digest = crc32.Update(digest, crc32.IEEETable, b)
			_, err = src.Discard(n)
		}
		return b, err
	}
	head, err := next(10)
	if err == io.EOF && len(head) > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	if head[0] != 0x1f || head[1] != 0x8b || head[2] != 8 || head[3]&reserved != 0 {
		return gzip.ErrHeader
	}
	flags := head[3]
	if flags&hasExtra != 0 {
		size, err := next(2)
		if err != nil {
			return unexpected(err)
		}
		for left := int(binary.LittleEndian.Uint16(size)); left > 0; {
			n := min(left, leastBuffer)
			if _, err := next(n); err != nil {
				return unexpected(err)
			}
			left -= n
		}
	}
	for _, text := range [...]byte{hasName, hasComment} {
		for n := 0; flags&text != 0; n++ {
			c, err := next(1)
			switch {
			case err != nil:
				return unexpected(err)
			case c[0] == 0:
				flags &^= text
			case n == maxText-1:
				return gzip.ErrHeader
			}
		}
	}
	if flags&hasDigest != 0 {
		want := uint16(digest)
		got, err := next(2)
		if err != nil {
			return unexpected(err)
		}
		if binary.LittleEndian.Uint16(got) != want {
			return gzip.ErrHeader
		}
	}
	return nil
}

// unexpected is err for an input that must go on.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Fill writes what follows in the member to buf[end:], which has MinRoom at least,
// and returns how many bytes that are. buf[:end] ends with what came before, at
// least with History of it or with all; it may have been moved. The error may come
// together with bytes. It is io.EOF behind the member, whose checksum was right.
func (z *Reader) Fill(buf []byte, end int) (int, error) {
	if z.err != nil {
		return 0, z.err
	}
	to, err := z.flate.inflate(buf, end)
	z.digest = crc32.Update(z.digest, crc32.IEEETable, buf[end:to])
	z.size += uint32(to - end) // modulo 2^32, as the format has it
	if err == io.EOF {
		err = z.trailer()
	}
	z.err = err
	return to - end, err
}

// trailer checks what stands behind the member. Source: RFC 1952, 2.3.1.
func (z *Reader) trailer() error {
	z.flate.leave()
	const size = 8
	b, err := z.flate.src.Peek(size)
	if err != nil {
		return unexpected(err)
	}
	if binary.LittleEndian.Uint32(b) != z.digest || binary.LittleEndian.Uint32(b[4:]) != z.size {
		return gzip.ErrChecksum
	}
	_, _ = z.flate.src.Discard(size) // they are buffered
	return io.EOF
}
