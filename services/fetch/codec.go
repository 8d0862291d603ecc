package fetch

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/penstock/penstock/services/fetch/gunzip"
)

// storedBuffer is what is read from S3 at once. Unit: bytes.
const storedBuffer = 64 << 10

// judgedFrom is where the ratio of an object begins to count. Less than that
// harms nobody, and one record full of zeros is no bomb. Unit: bytes.
const judgedFrom = 32 << 20

// maxZstdWindow bounds the history that a zstd frame may ask for: the format
// recommends to support 8 MiB, the zstd program refuses more than 128 MiB. A
// window above plainZstdWindow counts as a large buffer. Unit: bytes.
const (
	maxZstdWindow   = 32 << 20
	plainZstdWindow = 1 << 20
)

// decoder turns stored bytes into raw ones. The bytes decide the codec, not the
// name of the object or what its headers say. Source: formats F-0.
type decoder struct {
	stored *bufio.Reader
	object *object
	r      io.Reader // nil for gzip

	gzip gunzip.Reader
	zstd *zstd.Decoder
	wide bool // zstd has a large buffer

	// trailing says that something else follows the last gzip member.
	trailing bool
	raw      int64
	maxRaw   int64
	maxRatio int64
}

// bzip2Block and bzip2End are what follows the first four bytes of a bzip2 file.
var (
	bzip2Block = []byte{0x31, 0x41, 0x59, 0x26, 0x53, 0x59}
	bzip2End   = []byte{0x17, 0x72, 0x45, 0x38, 0x50, 0x90}
)

// reset prepares for another object. It reads the first bytes. enlarge is asked
// before large buffers are made.
func (d *decoder) reset(o *object, cfg Config, enlarge func() error) error {
	if d.stored == nil {
		d.stored = bufio.NewReaderSize(o, storedBuffer)
	} else {
		d.stored.Reset(o)
	}
	d.object, d.r, d.trailing, d.raw = o, nil, false, 0
	d.maxRaw, d.maxRatio = int64(cfg.MaxObject), int64(cfg.MaxRatio)
	head, err := d.stored.Peek(zstd.HeaderMaxSize)
	if err != nil && err != io.EOF {
		return err
	}
	switch {
	case isGzip(head):
		return d.member()
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var h zstd.Header
		if h.Decode(head) == nil && h.WindowSize > plainZstdWindow {
			if err := enlarge(); err != nil {
				return err
			}
			d.wide = true
		}
		if d.zstd == nil {
			d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(maxZstdWindow))
			if err != nil {
				return err
			}
		}
		d.r = d.zstd
		return d.zstd.Reset(d.stored)
	case len(head) >= 10 && string(head[:3]) == "BZh" && (bytes.Equal(head[4:10], bzip2Block) || bytes.Equal(head[4:10], bzip2End)):
		d.r = bzip2.NewReader(d.stored)
	default:
		d.r = d.stored
	}
	return nil
}

// release drops what the object holds, and large buffers, so that the decoder can wait for
// the next one.
func (d *decoder) release() {
	d.object, d.r = nil, nil
	d.stored.Reset(nil)
	d.gzip.Release()
	switch {
	case d.zstd == nil:
	case d.wide: // it keeps its buffer over a Reset
		d.zstd.Close()
		d.zstd, d.wide = nil, false
	default:
		_ = d.zstd.Reset(nil)
	}
}

// Fill implements framing.Filler. It ends with fetch.too_large or fetch.bomb where
// the limits are.
func (d *decoder) Fill(buf []byte, end int) (n int, err error) {
	if d.r == nil {
		n, err = d.members(buf, end)
	} else {
		n, err = d.r.Read(buf[end:])
	}
	d.raw += int64(n)
	switch {
	case d.raw > d.maxRaw:
		n -= int(d.raw - d.maxRaw)
		d.raw = d.maxRaw
		return max(n, 0), errTooLarge.New(nil, "read more than %d bytes of %s", d.maxRaw, d.object.name())
	case d.raw > judgedFrom && d.raw/d.maxRatio > d.object.read:
		return n, errBomb.New(nil, "decompress %d bytes of %s to more than %d times as many", d.object.read, d.object.name(), d.maxRatio)
	}
	return n, err
}

// members reads one gzip member after the other. Source: RFC 1952, 2.2.
func (d *decoder) members(buf []byte, end int) (int, error) {
	for {
		n, err := d.gzip.Fill(buf, end)
		if err != io.EOF {
			return n, err
		}
		if n > 0 {
			return n, nil
		}
		head, err := d.stored.Peek(10)
		if len(head) == 0 && err != nil {
			return 0, err
		}
		if !isGzip(head) {
			d.trailing = true
			return 0, io.EOF
		}
		if err := d.member(); err != nil {
			return 0, err
		}
	}
}

// member begins a gzip member.
func (d *decoder) member() error {
	err := d.gzip.Reset(d.stored)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// isGzip tells whether a gzip header begins with head: magic, deflate, and no
// reserved flags. A header that is cut short counts.
func isGzip(head []byte) bool {
	return len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b &&
		(len(head) < 3 || head[2] == 8) && (len(head) < 4 || head[3]&0xe0 == 0)
}

// garbage reads what follows the last gzip member: its length, and a copy of its
// first bytes. Zeros are padding, not garbage.
func (d *decoder) garbage(keep int) (head []byte, length int64, err error) {
	var chunk [4096]byte
	dirty := false
	for {
		n, err := d.stored.Read(chunk[:])
		length += int64(n)
		head = append(head, chunk[:min(n, keep-len(head))]...)
		dirty = dirty || len(bytes.Trim(chunk[:n], "\x00")) > 0
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, 0, err
		}
	}
	if !dirty {
		return nil, 0, nil
	}
	return head, length, nil
}
