package sinks

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/parquet-go/parquet-go"

	"github.com/penstock/penstock/messages"
)

const (
	// rowGroupBytes of documents make a row group of parquet.
	rowGroupBytes = 16 << 20
	// rowsBytes is what a writer of parquet needs for itself, about.
	rowsBytes = 576 << 10
	// The pauses between attempts to upload what failed, while nobody asks for one.
	firstPause = time.Second
	mostPause  = 30 * time.Second
)

// s3Object is one object in the making. One goroutine, run, uploads it; others add.
type s3Object struct {
	s         *s3Sink
	partition string
	turn      int64
	stamp     int64 // time of the first event

	ctx    context.Context //nolint:containedctx // of its uploads
	cancel context.CancelFunc
	news   chan struct{} // has something when run should look

	mu      sync.Mutex
	sealed  bool     // nothing is added any more
	chunks  [][]byte // not uploaded; all but the last are full
	content hash.Hash
	ids     hash.Hash
	events  int
	raw     int64 // before compression
	stored  int64 // as they are stored
	first   int64
	last    int64
	rows    *parquet.GenericWriter[s3Row] // nil for lines
	inRows  int64                         // bytes in the row group that is not written
	pending int64                         // as it counts in s.pending
	broken  error                         // of rows

	// Only run uses these.
	upload string
	key    string
	parts  []types.CompletedPart

	// Guarded by s.mu.
	holders  int
	tries    int
	err      error // of the last attempt
	finished chan struct{}
	result   error
}

// object makes one.
func (s *s3Sink) object(g *s3Group) *s3Object {
	o := &s3Object{
		s: s, partition: g.partition, turn: s.turn.Add(1), stamp: g.stamp, news: make(chan struct{}, 1), finished: make(chan struct{}),
		content: sha256.New(), ids: sha256.New(), cancel: func() {},
	}
	_, _ = o.ids.Write([]byte(s.name)) // another destination may write to the same place
	if s.cfg.Format == S3Parquet {
		o.rows = s.encoder.rows(s3Chunks{o})
	}
	return o
}

// poke has run look at once.
func (o *s3Object) poke() {
	select {
	case o.news <- struct{}{}:
	default:
	}
}

// add takes a group in, false when the object has no room for it or is sealed.
func (o *s3Object) add(g *s3Group) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := &o.s.cfg
	if o.sealed || o.events > 0 && (o.events+len(g.at) > c.Batch.Events || o.raw+g.raw > int64(c.Batch.Bytes) || o.stored+int64(len(g.member)) > int64(c.ObjectBytes)) {
		return false
	}
	if o.rows == nil {
		o.write(g.member)
	} else {
		o.writeRows(g)
	}
	_, _ = o.ids.Write(g.ids)
	o.events += len(g.at)
	o.raw += g.raw
	if g.first != 0 && (o.first == 0 || g.first < o.first) {
		o.first = g.first
	}
	if g.last != 0 && (o.last == 0 || g.last > o.last) {
		o.last = g.last
	}
	o.account()
	full := o.events >= c.Batch.Events || o.raw >= int64(c.Batch.Bytes) || o.stored >= int64(c.ObjectBytes)
	if full {
		o.close()
	}
	if full || len(o.chunks) > 1 {
		o.poke()
	}
	return true
}

// write appends to the chunks. The caller holds the lock.
func (o *s3Object) write(data []byte) {
	_, _ = o.content.Write(data)
	o.stored += int64(len(data))
	for len(data) > 0 {
		if n := len(o.chunks); n == 0 || len(o.chunks[n-1]) == partBytes {
			o.chunks = append(o.chunks, nil)
		}
		last := &o.chunks[len(o.chunks)-1]
		n := min(len(data), partBytes-len(*last))
		*last = append(*last, data[:n]...)
		data = data[n:]
	}
}

// s3Chunks writes what parquet makes.
type s3Chunks struct{ o *s3Object }

func (c s3Chunks) Write(p []byte) (int, error) {
	c.o.write(p)
	return len(p), nil
}

func (o *s3Object) writeRows(g *s3Group) {
	rows := make([]s3Row, len(g.at))
	for i, columns := range g.events {
		rows[i] = readRow(messages.ID(g.ids[i*len(messages.ID{}):]), columns)
	}
	if _, err := o.rows.Write(rows); err != nil && o.broken == nil {
		o.broken = err
	}
	if o.inRows += g.raw; o.inRows >= rowGroupBytes {
		if err := o.rows.Flush(); err != nil && o.broken == nil {
			o.broken = err
		}
		o.inRows = 0
	}
}

// account brings the count of bytes in memory up to date. The caller holds the lock.
func (o *s3Object) account() {
	now := o.inRows
	if o.rows != nil {
		now += rowsBytes
	}
	for _, c := range o.chunks {
		now += int64(len(c))
	}
	o.s.count(now - o.pending)
	o.pending = now
}

func (s *s3Sink) count(delta int64) {
	s3Pending.WithLabelValues(s.name).Set(float64(s.pending.Add(delta)))
}

// close ends the content. The caller holds the lock.
func (o *s3Object) close() {
	if o.sealed {
		return
	}
	o.sealed = true
	if o.rows != nil && o.events > 0 {
		if err := o.rows.Close(); err != nil && o.broken == nil {
			o.broken = err
		}
		o.rows, o.inRows = nil, 0 // its buffers are large
		o.account()
	}
}

// seal has the object completed.
func (o *s3Object) seal() {
	o.mu.Lock()
	o.close()
	o.mu.Unlock()
	o.s.mu.Lock()
	if o.s.open[o.partition] == o {
		delete(o.s.open, o.partition)
	}
	o.s.mu.Unlock()
	o.poke()
}

// forget lets go of the bytes.
func (o *s3Object) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.chunks, o.rows, o.inRows = nil, nil, 0
	o.account()
}

// wait returns when the object is stored, or why it is not.
func (o *s3Object) wait(ctx context.Context) error {
	defer o.s.leave(o)
	select {
	case <-o.finished:
		return o.result
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run uploads the object while it grows, and completes it when it is sealed or old.
// What fails is repeated until it succeeds, nobody waits for it any more, or the upload
// is lost.
func (o *s3Object) run() {
	age := time.NewTimer(o.s.cfg.Batch.Age - o.s.Limits().Age)
	defer age.Stop()
	for pause := firstPause; ; {
		idle, done, err := o.step()
		if idle {
			select {
			case <-o.news:
			case <-age.C:
				o.seal()
			case <-o.ctx.Done():
				o.end(context.Cause(o.ctx))
				return
			}
			continue
		}
		if err != nil && o.ctx.Err() == nil {
			err = o.s.explain(err, "store "+cmp.Or(o.key, o.partition))
		}
		if done || errors.Is(err, errS3Lost) || o.ctx.Err() != nil {
			o.end(err)
			return
		}
		if err == nil {
			o.tell(nil)
			pause = firstPause
			continue
		}
		o.fail(err)
		o.rest(max(pause, askedFor(err)))
		pause = min(2*pause, mostPause)
	}
}

// fail tells of an attempt that failed, and seals the object: once it goes again it is
// completed, so that those who wait learn of it.
func (o *s3Object) fail(err error) {
	o.seal() // before it is told: it asks for an attempt, which has been had
	o.tell(err)
}

// rest waits before the next attempt, unless somebody asks for one.
func (o *s3Object) rest(pause time.Duration) {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-o.news:
	case <-o.ctx.Done():
	}
}

// tell tells of an attempt.
func (o *s3Object) tell(err error) {
	o.s.mu.Lock()
	first := err != nil && o.err == nil
	if err != nil {
		select { // what was asked for before has been had; what is from now on has not
		case <-o.news:
		default:
		}
	}
	o.tries++
	o.err = err
	o.s.wake()
	o.s.mu.Unlock()
	if first {
		o.s.log.Warn("object cannot be stored; it is tried again", "key", o.key, "err", err)
	}
}

// end tells how it ended and lets go of the object.
func (o *s3Object) end(err error) {
	if err != nil && o.upload != "" {
		if failed := o.s.abort(o.ctx, o.key, o.upload); failed != nil && !lostUpload(failed) {
			o.s.log.Warn("parts of an upload stay in the bucket", "key", o.key, "err", o.s.explain(failed, "abort the upload of "+o.key))
		}
	}
	o.cancel()
	o.seal()
	o.forget()
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	delete(o.s.objects, o)
	o.result = err
	close(o.finished)
	o.s.wake()
}

// step does what is next: nothing, one part, or all that is left.
func (o *s3Object) step() (idle, done bool, err error) {
	o.mu.Lock()
	chunks, sealed, broken := len(o.chunks), o.sealed, o.broken
	var front []byte
	if chunks > 0 {
		front = o.chunks[0]
	}
	o.mu.Unlock()
	switch {
	case broken != nil:
		return false, false, errS3Lost.New(broken, "write rows for destination %s", o.s.name)
	case chunks > 1:
		return false, false, o.sendPart(front)
	case !sealed:
		return true, false, nil
	case o.events == 0: // nothing is stored where there is nothing to store
		return false, true, nil
	case o.upload == "":
		err := o.storeWhole(o.ctx)
		return false, err == nil, err
	}
	err = o.complete(front)
	return false, err == nil, err
}

// name completes the key.
func (o *s3Object) name(id string) string {
	ending, _ := o.s.cfg.ending()
	return keyOf(o.partition, o.stamp, id) + ending
}

// storeWhole puts the object by one call, under the name that its events give it.
func (o *s3Object) storeWhole(ctx context.Context) error {
	o.mu.Lock()
	o.close()
	broken, body := o.broken, bytes.Join(o.chunks, nil)
	if len(o.chunks) == 1 {
		body = o.chunks[0]
	}
	o.mu.Unlock()
	if broken != nil {
		return errS3Lost.New(broken, "write rows for destination %s", o.s.name)
	}
	o.key = o.name(hex.EncodeToString(o.ids.Sum(nil)[:16]))
	err := o.s.putWhole(ctx, o.key, body, objectMetadata(int64(o.events), o.first, o.last, o.content.Sum(nil)))
	if err == nil {
		o.stand("whole")
	}
	return err
}

// stand counts an object that is stored.
func (o *s3Object) stand(how string) {
	s3Objects.WithLabelValues(o.s.name, how).Inc()
	s3Bytes.WithLabelValues(o.s.name).Add(float64(o.stored))
}

// sendPart uploads the first chunk as the next part.
func (o *s3Object) sendPart(front []byte) error {
	if o.upload == "" {
		key := o.name(uploadID())
		upload, err := o.s.begin(o.ctx, key)
		if err != nil {
			return err
		}
		o.key, o.upload = key, upload
	}
	// At most 16 GiB in parts of 8 MiB.
	part, err := o.s.uploadPart(o.ctx, o.key, o.upload, int32(len(o.parts)+1), front)
	if err != nil {
		return err
	}
	o.parts = append(o.parts, part)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.chunks[0] = nil
	o.chunks = o.chunks[1:]
	o.account()
	return nil
}

// complete uploads the last part and makes the object.
func (o *s3Object) complete(front []byte) error {
	if front != nil {
		if err := o.sendPart(front); err != nil {
			return err
		}
	}
	if err := o.s.complete(o.ctx, o.key, o.upload, o.parts); err != nil {
		return err
	}
	o.stand("parts")
	return nil
}
