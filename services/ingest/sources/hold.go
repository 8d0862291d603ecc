package sources

import (
	"container/heap"
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// post is one received message, from receive on until it is settled: deleted, given
// back or left to its visibility timeout.
type post struct {
	letter
	handle string
	// group of a FIFO queue, else "".
	group string
	// failed: penstock itself failed on it, or on one before it in its group.
	failed bool
	size   int64
	lot    *lot
	// packed: the packer settles it.
	packed bool
	// kept: the message is to be kept from other readers. settled: it is no more
	// counted. Under lot.mu.
	kept, settled bool
}

// lot is what one receive call brought: messages whose visibility ends together.
type lot struct {
	posts []*post
	// until is when what is not stored is given back.
	until time.Time
	next  time.Time // when to extend
	index int       // in the heap, -1 outside

	calls sync.Mutex // held while visibility is changed: calls must not overtake each other

	mu   sync.Mutex
	left int // posts not settled
}

// keeper keeps messages from other readers and settles them. Its methods may be
// called concurrently.
type keeper struct {
	s *sqsSource
	// deletes bounds the calls that settle.
	deletes *semaphore.Weighted

	mu   sync.Mutex
	due  lots
	wake chan struct{}
}

// Calls at a time: to extend visibility, and to delete and give back.
const (
	extendsAtOnce = 8
	deletesAtOnce = 64
)

func newKeeper(s *sqsSource) *keeper {
	return &keeper{s: s, deletes: semaphore.NewWeighted(deletesAtOnce), wake: make(chan struct{}, 1)}
}

// take begins to keep posts that were received together at this moment.
func (k *keeper) take(posts []*post, now time.Time) {
	visible := k.s.cfg.VisibilityTimeout
	l := &lot{posts: posts, until: now.Add(k.s.cfg.MaxHold), next: now.Add(visible / 2), left: len(posts)}
	size := int64(0)
	for _, p := range posts {
		p.lot, p.kept = l, true
		size += p.size
	}
	k.s.m.inFlight.Add(float64(len(posts)))
	k.s.m.inFlightBytes.Add(float64(size))
	k.put(l)
}

func (k *keeper) put(l *lot) {
	k.mu.Lock()
	heap.Push(&k.due, l)
	first := k.due[0] == l
	k.mu.Unlock()
	if first {
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
}

// run extends the visibility of what is kept, until ctx ends.
func (k *keeper) run(ctx context.Context) {
	var g errgroup.Group
	defer func() { _ = g.Wait() }()
	g.SetLimit(extendsAtOnce)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		l, wait := k.first(time.Now())
		if l != nil {
			g.Go(func() error { k.extend(ctx, l); return nil })
			continue
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-k.wake:
		}
	}
}

// first takes out the first lot that is due; else it tells how long to wait.
func (k *keeper) first(now time.Time) (*lot, time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.due) == 0 {
		return nil, time.Hour
	}
	if wait := k.due[0].next.Sub(now); wait > 0 {
		return nil, wait
	}
	l, _ := heap.Pop(&k.due).(*lot)
	return l, 0
}

// extend hides the messages of a lot for another while. Messages that are lost to
// another reader are not asked for again. They are stored all the same: whoever
// stores them second is a duplicate.
func (k *keeper) extend(ctx context.Context, l *lot) {
	now, visible := time.Now(), k.s.cfg.VisibilityTimeout
	left := l.until.Sub(now)
	if left <= 0 {
		return // whoever stores it has just given up
	}
	l.calls.Lock()
	worked := k.hide(ctx, l, min(visible, left))
	l.calls.Unlock()
	next := visible / 2
	if !worked {
		next = visible / 8
	}
	l.mu.Lock()
	more := l.left > 0
	l.next = now.Add(min(next, left))
	l.mu.Unlock()
	if more {
		k.put(l)
	}
}

// hide asks for the messages of l that are kept to be hidden for d from now on. It
// tells whether the call worked.
func (k *keeper) hide(ctx context.Context, l *lot, d time.Duration) bool {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var entries []types.ChangeMessageVisibilityBatchRequestEntry
	l.mu.Lock()
	for i, p := range l.posts {
		if p.kept {
			entries = append(entries, types.ChangeMessageVisibilityBatchRequestEntry{
				Id: aws.String(strconv.Itoa(i)), ReceiptHandle: &p.handle, VisibilityTimeout: seconds(d),
			})
		}
	}
	l.mu.Unlock()
	if len(entries) == 0 {
		return true
	}
	name := k.s.deps.Name
	out, err := k.s.client.ChangeMessageVisibilityBatch(call, &sqs.ChangeMessageVisibilityBatchInput{
		QueueUrl: &k.s.cfg.QueueURL, Entries: entries,
	})
	if err != nil {
		if ctx.Err() == nil {
			k.s.health.failed(ctx, callChange, err)
			mExtended.WithLabelValues(name, "error").Add(float64(len(entries)))
		}
		return false
	}
	k.s.health.worked(ctx, callChange)
	mExtended.WithLabelValues(name, "ok").Add(float64(len(out.Successful)))
	worked := true
	for _, f := range out.Failed {
		if !f.SenderFault {
			worked = false
			mExtended.WithLabelValues(name, "error").Inc()
			continue
		}
		if p := pick(l.posts, f.Id); p != nil && p.drop() {
			mExtended.WithLabelValues(name, "lost").Inc()
			k.s.log.WarnContext(ctx, "a message became visible to other readers before it was stored",
				"code", aws.ToString(f.Code))
		}
	}
	return worked
}

// drop ends the keeping of p; it tells whether p was kept.
func (p *post) drop() bool {
	p.lot.mu.Lock()
	defer p.lot.mu.Unlock()
	kept := p.kept
	p.kept = false
	return kept
}

// pick returns the post that an entry's id names, nil for none.
func pick(posts []*post, id *string) *post {
	i, err := strconv.Atoi(aws.ToString(id))
	if err != nil || i < 0 || i >= len(posts) {
		return nil
	}
	return posts[i]
}

// done lets go of posts that are settled, of each once.
func (k *keeper) done(posts []*post) {
	size, n := int64(0), 0
	for _, p := range posts {
		l := p.lot
		l.mu.Lock()
		p.kept = false
		again := p.settled
		if p.settled = true; !again {
			l.left--
			size += p.size
			n++
		}
		last := !again && l.left == 0
		l.mu.Unlock()
		if !last {
			continue
		}
		k.mu.Lock()
		if l.index >= 0 {
			heap.Remove(&k.due, l.index)
		}
		k.mu.Unlock()
	}
	k.s.m.inFlight.Sub(float64(n))
	k.s.m.inFlightBytes.Sub(float64(size))
	k.s.room.release(size, n)
}

// inTens calls do for every ten posts, several at a time, also while the program
// drains, and lets go of them.
func (k *keeper) inTens(ctx context.Context, posts []*post, do func(ctx context.Context, posts []*post)) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	for len(posts) > 0 {
		n := min(batchMax, len(posts))
		ten := posts[:n]
		posts = posts[n:]
		_ = k.deletes.Acquire(context.WithoutCancel(ctx), 1) // those before it end in time
		wg.Go(func() {
			defer k.deletes.Release(1)
			defer k.done(ten)
			do(ctx, ten)
		})
	}
}

// remove deletes what was stored. What cannot be deleted comes again and is known
// then: by its message id, or downstream by the ids of its events.
func (k *keeper) remove(ctx context.Context, posts []*post) {
	k.inTens(ctx, posts, func(ctx context.Context, posts []*post) {
		left := make([]types.DeleteMessageBatchRequestEntry, len(posts))
		for i, p := range posts {
			left[i] = types.DeleteMessageBatchRequestEntry{Id: &digits[i], ReceiptHandle: &p.handle}
		}
		var wait backoff
		for {
			out, err := k.s.client.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: &k.s.cfg.QueueURL, Entries: left})
			if err != nil {
				k.s.health.failed(ctx, callDelete, err)
			} else {
				k.s.health.worked(ctx, callDelete)
				k.s.m.deleted.Add(float64(len(out.Successful)))
				left = k.toRepeat(posts, left, out.Failed)
			}
			if len(left) == 0 {
				return
			}
			if !pause(ctx, wait.next()) {
				for _, e := range left {
					k.s.recent.add(pick(posts, e.Id).id)
				}
				k.s.log.WarnContext(ctx, "stored messages could not be deleted and will come again", "messages", len(left))
				return
			}
		}
	})
}

// digits are the ids of the entries of a call.
var digits = [batchMax]string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}

// toRepeat keeps of entries those whose deletion failed by no fault of ours. The
// others have a receipt that does not count any more: they come again.
func (k *keeper) toRepeat(posts []*post, entries []types.DeleteMessageBatchRequestEntry, failed []types.BatchResultErrorEntry) []types.DeleteMessageBatchRequestEntry {
	var repeat []types.DeleteMessageBatchRequestEntry
	for _, f := range failed {
		p := pick(posts, f.Id)
		switch {
		case p == nil:
		case f.SenderFault:
			k.s.recent.add(p.id)
		default:
			for _, e := range entries {
				if aws.ToString(e.Id) == aws.ToString(f.Id) {
					repeat = append(repeat, e)
				}
			}
		}
	}
	return repeat
}

// giveBack makes messages visible again after the time that when tells. A message
// that cannot be given back comes again when its visibility timeout has passed.
func (k *keeper) giveBack(ctx context.Context, posts []*post, when func(*post) time.Duration) {
	k.inTens(ctx, posts, func(ctx context.Context, posts []*post) {
		var entries []types.ChangeMessageVisibilityBatchRequestEntry
		for i, p := range posts {
			if !p.drop() {
				continue
			}
			// A late extension would hide it again.
			p.lot.calls.Lock()
			//lint:ignore SA2001 to wait for a call under way is all there is to do
			p.lot.calls.Unlock() //nolint:staticcheck // as above
			entries = append(entries, types.ChangeMessageVisibilityBatchRequestEntry{
				Id: &digits[i], ReceiptHandle: &p.handle, VisibilityTimeout: seconds(when(p)),
			})
		}
		if len(entries) == 0 {
			return
		}
		out, err := k.s.client.ChangeMessageVisibilityBatch(ctx, &sqs.ChangeMessageVisibilityBatchInput{
			QueueUrl: &k.s.cfg.QueueURL, Entries: entries,
		})
		if err != nil {
			k.s.health.failed(ctx, callChange, err)
			return
		}
		k.s.health.worked(ctx, callChange)
		mReturned.WithLabelValues(k.s.deps.Name).Add(float64(len(out.Successful)))
	})
}

// lots is a heap of what is to be extended first.
type lots []*lot

func (h lots) Len() int           { return len(h) }
func (h lots) Less(i, j int) bool { return h[i].next.Before(h[j].next) }
func (h lots) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }

// Push implements heap.Interface.
func (h *lots) Push(x any) {
	l := x.(*lot) //nolint:forcetypeassert // nothing else is in it
	l.index = len(*h)
	*h = append(*h, l)
}

// Pop implements heap.Interface.
func (h *lots) Pop() any {
	old := *h
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*h, l.index = old[:len(old)-1], -1
	return l
}

// recent remembers ids of messages that were stored and may come again, so that
// they are not stored again. It may be used concurrently.
type recent struct {
	size int
	mu   sync.Mutex
	ids  map[string]struct{}
	ring []string // grows up to size: most sources are quiet
	next int
}

func newRecent(size int) *recent {
	return &recent{size: size, ids: make(map[string]struct{})}
}

func (r *recent) has(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.ids[id]
	return ok
}

func (r *recent) add(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.ids[id]; ok {
		return
	}
	r.ids[id] = struct{}{}
	if len(r.ring) < r.size {
		r.ring = append(r.ring, id)
		return
	}
	delete(r.ids, r.ring[r.next])
	r.ring[r.next] = id
	r.next = (r.next + 1) % r.size
}
