package sources

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// hold keeps a batch of messages from other readers, from receive on until they
// are deleted or given back.
type hold struct {
	s     *sqsSource
	posts []*post

	cancel context.CancelCauseFunc
	done   chan struct{}

	mu sync.Mutex
	// ours tells which posts are still to be kept; by index.
	ours []bool
}

// hold begins to extend the visibility of posts. The context ends with ctx, by
// end, and when the messages were held for too long.
func (s *sqsSource) hold(ctx context.Context, posts []*post) (*hold, context.Context) {
	h := &hold{s: s, posts: posts, done: make(chan struct{}), ours: make([]bool, len(posts))}
	for i := range h.ours {
		h.ours[i] = true
	}
	held, cancel := context.WithCancelCause(ctx)
	h.cancel = cancel
	go h.beat(held)
	return h, held
}

// end stops extending, and waits for an extension under way. Call it before
// messages are given back: a late extension would hide them again.
func (h *hold) end() {
	h.cancel(nil)
	<-h.done
}

func (h *hold) beat(ctx context.Context) {
	defer close(h.done)
	began, visible := time.Now(), h.s.cfg.VisibilityTimeout
	timer := time.NewTimer(visible / 2)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		left := h.s.cfg.MaxHold - time.Since(began)
		if left <= 0 {
			h.cancel(errHeld.New(nil, "store %d messages of source %s within %s", len(h.posts), h.s.deps.Name, h.s.cfg.MaxHold))
			return
		}
		next := visible / 2
		if !h.extend(ctx, min(visible, left)) {
			next = visible / 8
		}
		timer.Reset(min(next, left))
	}
}

// extend hides the messages for d from now on. It tells whether the call worked;
// messages that are lost to another reader are not asked for again. They are
// stored all the same: whoever stores them second is a duplicate.
func (h *hold) extend(ctx context.Context, d time.Duration) bool {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var entries []types.ChangeMessageVisibilityBatchRequestEntry
	h.mu.Lock()
	for i, p := range h.posts {
		if h.ours[i] {
			entries = append(entries, types.ChangeMessageVisibilityBatchRequestEntry{
				Id: aws.String(strconv.Itoa(i)), ReceiptHandle: &p.handle, VisibilityTimeout: seconds(d),
			})
		}
	}
	h.mu.Unlock()
	if len(entries) == 0 {
		return true
	}
	name := h.s.deps.Name
	out, err := h.s.client.ChangeMessageVisibilityBatch(call, &sqs.ChangeMessageVisibilityBatchInput{
		QueueUrl: &h.s.cfg.QueueURL, Entries: entries,
	})
	if err != nil {
		if ctx.Err() == nil {
			h.s.health.failed(ctx, callChange, err)
			mExtended.WithLabelValues(name, "error").Add(float64(len(entries)))
		}
		return false
	}
	h.s.health.worked(ctx, callChange)
	mExtended.WithLabelValues(name, "ok").Add(float64(len(out.Successful)))
	worked := true
	for _, f := range out.Failed {
		if !f.SenderFault {
			worked = false
			mExtended.WithLabelValues(name, "error").Inc()
			continue
		}
		if h.drop(f.Id) != nil {
			mExtended.WithLabelValues(name, "lost").Inc()
			h.s.log.WarnContext(ctx, "a message became visible to other readers before it was stored",
				"code", aws.ToString(f.Code))
		}
	}
	return worked
}

// drop takes a message out of the hold; nil when it was out already.
func (h *hold) drop(id *string) *post {
	i, err := strconv.Atoi(aws.ToString(id))
	if err != nil || i < 0 || i >= len(h.posts) {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ours[i] {
		return nil
	}
	h.ours[i] = false
	return h.posts[i]
}

// remove deletes what was stored, also while the program drains. What cannot be
// deleted comes again and is known then: by its message id, or downstream by the
// ids of its events.
func (h *hold) remove(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	var left []types.DeleteMessageBatchRequestEntry
	for i, p := range h.posts {
		if !p.failed {
			left = append(left, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: &p.handle})
		}
	}
	var wait backoff
	for len(left) > 0 {
		out, err := h.s.client.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: &h.s.cfg.QueueURL, Entries: left})
		if err != nil {
			h.s.health.failed(ctx, callDelete, err)
		} else {
			h.s.health.worked(ctx, callDelete)
			for _, e := range out.Successful {
				h.drop(e.Id)
			}
			mDeleted.WithLabelValues(h.s.deps.Name).Add(float64(len(out.Successful)))
			left = toRepeat(left, out.Failed)
		}
		if len(left) > 0 && !pause(ctx, wait.next()) {
			h.s.log.WarnContext(ctx, "stored messages could not be deleted and will come again", "messages", len(left))
			return
		}
	}
}

// toRepeat keeps of entries those whose deletion failed by no fault of ours. The
// others have a receipt that does not count any more: they come again.
func toRepeat(entries []types.DeleteMessageBatchRequestEntry, failed []types.BatchResultErrorEntry) []types.DeleteMessageBatchRequestEntry {
	var repeat []types.DeleteMessageBatchRequestEntry
	for _, f := range failed {
		for _, e := range entries {
			if !f.SenderFault && aws.ToString(e.Id) == aws.ToString(f.Id) {
				repeat = append(repeat, e)
			}
		}
	}
	return repeat
}

// giveBack makes messages visible again after the time that when tells, for
// those that it picks, also while the program drains. A message that cannot be
// given back comes again when its visibility timeout has passed.
func (h *hold) giveBack(ctx context.Context, when func(*post) (time.Duration, bool)) {
	var entries []types.ChangeMessageVisibilityBatchRequestEntry
	h.mu.Lock()
	for i, p := range h.posts {
		if wait, pick := when(p); pick && h.ours[i] {
			entries = append(entries, types.ChangeMessageVisibilityBatchRequestEntry{
				Id: aws.String(strconv.Itoa(i)), ReceiptHandle: &p.handle, VisibilityTimeout: seconds(wait),
			})
		}
	}
	h.mu.Unlock()
	if len(entries) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	out, err := h.s.client.ChangeMessageVisibilityBatch(ctx, &sqs.ChangeMessageVisibilityBatchInput{
		QueueUrl: &h.s.cfg.QueueURL, Entries: entries,
	})
	if err != nil {
		h.s.health.failed(ctx, callChange, err)
		return
	}
	h.s.health.worked(ctx, callChange)
	for _, e := range out.Successful {
		h.drop(e.Id)
	}
	mReturned.WithLabelValues(h.s.deps.Name).Add(float64(len(out.Successful)))
}

// recent remembers the last message ids that were stored, so that a message
// whose deletion was lost is not stored again. It may be used concurrently.
type recent struct {
	mu   sync.Mutex
	ids  map[string]struct{}
	ring []string
	next int
}

func newRecent(size int) *recent {
	return &recent{ids: make(map[string]struct{}), ring: make([]string, size)}
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
	if old := r.ring[r.next]; old != "" {
		delete(r.ids, old)
	}
	r.ids[id], r.ring[r.next] = struct{}{}, id
	r.next = (r.next + 1) % len(r.ring)
}
