package sinks

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"io"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/document"
)

// uploadID is an id that no other upload has.
func uploadID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}

// s3Encoder writes events as objects hold them. Methods may be called concurrently.
type s3Encoder struct {
	format  S3Format
	packing S3Compression
	zippers sync.Pool // of *s3Packer
}

// s3Packer compresses one group after the other.
type s3Packer struct {
	buf bytes.Buffer
	w   interface {
		io.WriteCloser
		Reset(w io.Writer)
	}
}

func newS3Encoder(cfg S3Config) *s3Encoder {
	e := &s3Encoder{format: cfg.Format, packing: cfg.compression()}
	e.zippers.New = func() any {
		p := &s3Packer{}
		switch e.packing {
		case S3Gzip:
			p.w, _ = gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is valid
		case S3Zstd:
			// A window of 4 MiB, as it is without a word, has each writer hold 9 MiB.
			p.w, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
				zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true)) // the options are valid
		case S3Auto, S3Snappy, S3Plain:
		}
		return p
	}
	return e
}

// append writes one event: a line, or columns for parquet.
func (e *s3Encoder) append(dst []byte, ev *Event) []byte {
	switch e.format {
	case S3Envelope:
		return Envelope.appendLine(dst, ev)
	case S3Parquet:
		dst = binary.LittleEndian.AppendUint64(dst, uint64(ev.Time))
		for _, text := range []string{ev.Type, ev.Source, ev.Account, ev.Region} {
			dst = appendLong(dst, text)
		}
		return appendDoc(dst, ev.Doc)
	case S3JSON, S3Syslog:
	}
	return appendIdentified(dst, ev, e.format == S3Syslog)
}

// appendIdentified writes the document as one line with a member event_id at its end. A
// document with such a member gets penstock_id. One that is no object becomes the member
// event. Bare leaves out the braces, and the space between tokens. Source: formats F-31.
func appendIdentified(dst []byte, e *Event, bare bool) []byte {
	doc := document.Trim(e.Doc)
	name := "event_id"
	if bytes.Contains(doc, []byte(`event_id"`)) && has(doc, name) {
		name = "penstock_id"
	}
	from := len(dst)
	object := document.KindOf(doc) == document.Object
	if !object {
		dst = append(dst, `{"event":`...)
	}
	if bare && len(doc) > 0 {
		dst = document.AppendLine(dst, doc)
	} else {
		dst = appendDoc(dst, doc)
	}
	if object {
		dst = dst[:len(dst)-1] // the brace
		for len(dst) > from && (dst[len(dst)-1] == ' ' || dst[len(dst)-1] == '\t') {
			dst = dst[:len(dst)-1]
		}
	}
	if len(dst) > from+1 {
		dst = append(dst, ',')
	}
	dst = append(append(append(dst, '"'), name...), `":"`...)
	dst = hex.AppendEncode(dst, e.ID[:])
	dst = append(dst, '"')
	if !bare {
		return append(dst, "}\n"...)
	}
	copy(dst[from:], dst[from+1:]) // the other brace
	dst[len(dst)-1] = '\n'
	return dst
}

// has tells whether an object has a member of a name that needs no escape.
func has(doc []byte, name string) bool {
	if document.KindOf(doc) != document.Object {
		return false
	}
	for c := document.Members(doc); ; {
		key, _, _, ok := c.Next()
		if !ok {
			return false
		}
		if string(key) == name {
			return true
		}
	}
}

// compress makes one member or frame of the lines of a group.
func (e *s3Encoder) compress(g *s3Group) {
	if e.format == S3Parquet {
		return
	}
	if e.packing == S3Plain {
		g.member = bytes.Join(g.events, nil)
		return
	}
	p := e.zippers.Get().(*s3Packer)
	defer e.zippers.Put(p)
	p.buf.Reset()
	p.w.Reset(&p.buf)
	for _, line := range g.events {
		_, _ = p.w.Write(line) // a bytes.Buffer takes all
	}
	_ = p.w.Close()
	g.member = bytes.Clone(p.buf.Bytes())
}

// s3Row is a row of parquet. Time is null when it is not known.
type s3Row struct {
	ID      string `parquet:"id"`
	Type    string `parquet:"type,dict"`
	Time    int64  `parquet:"time,optional,timestamp(microsecond)"`
	Source  string `parquet:"source,dict"`
	Account string `parquet:"account,dict"`
	Region  string `parquet:"region,dict"`
	Event   []byte `parquet:"event,string"`
}

// readRow reads what append wrote for parquet.
func readRow(id messages.ID, columns []byte) s3Row {
	at := int64(binary.LittleEndian.Uint64(columns))
	r := s3Row{ID: id.String(), Time: time.Unix(0, at).UnixMicro()}
	columns = columns[8:]
	for _, text := range []*string{&r.Type, &r.Source, &r.Account, &r.Region} {
		var b []byte
		b, columns = cutLong(columns)
		*text = string(b)
	}
	r.Event = columns
	return r
}

// rows makes a writer of parquet.
func (e *s3Encoder) rows(w io.Writer) *parquet.GenericWriter[s3Row] {
	codec := map[S3Compression]compress.Codec{
		S3Gzip: &parquet.Gzip, S3Zstd: &parquet.Zstd, S3Snappy: &parquet.Snappy, S3Plain: &parquet.Uncompressed,
	}[e.packing]
	return parquet.NewGenericWriter[s3Row](w, parquet.Compression(codec), parquet.CreatedBy("penstock", "", ""),
		parquet.SkipPageBounds("event"))
}
