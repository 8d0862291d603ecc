package cloud

import (
	"container/heap"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxMessage  = 1 << 20 // bytes of one message and of one batch
	maxInFlight = 120_000 // messages of one queue that are received and not deleted
	dedupWindow = 5 * time.Minute
	purgePause  = time.Minute
)

// queues holds all queues. One lock guards everything: what happens under it
// takes microseconds, and messages move between queues (dead letters).
type queues struct {
	cloud *Cloud
	mu    sync.Mutex
	named map[string]*queue
	// due orders by time what will become visible: messages in flight and
	// delayed ones, of all queues. One timer serves it.
	due    dueHeap
	timer  *time.Timer
	armed  time.Time // when timer fires; zero when it does not
	closed bool
	seq    uint64 // of the last message, for handles and FIFO order
}

type queue struct {
	name    string
	fifo    bool
	created time.Time
	changed time.Time
	purged  time.Time
	attrs   map[string]string

	// From attrs, parsed once:
	visibility, delay, retention, wait time.Duration
	maxSize                            int
	contentDedup                       bool
	deadLetter                         string // queue name
	maxReceives                        int

	byToken map[uint64]*message
	ready   ring                // standard
	groups  map[string]*group   // FIFO
	turn    []*group            // FIFO groups that can be received from, in order
	dedup   map[string]sentOnce // FIFO
	recent  []dedupEntry        // the same by age
	waiters []*waiter           // long polls, first come first served
	state   QueueState
}

// QueueState counts the messages of a queue.
type QueueState struct {
	// Visible can be received now; InFlight are received and neither deleted nor
	// visible again; Delayed will become visible for the first time.
	Visible, InFlight, Delayed int
	// Sent, Received, Deleted and DeadLettered count since the queue's creation.
	// A message that is received twice counts twice.
	Sent, Received, Deleted, DeadLettered int64
	// Waiting is the number of long polls that wait for a message.
	Waiting int
}

type message struct {
	token  uint64 // unique in the endpoint; sequence number
	id     string
	body   string
	md5    string
	attrs  []messageAttr
	sent   time.Time
	group  string
	dedup  string
	trace  string // AWSTraceHeader
	source string // ARN of the queue that it was a dead letter of
	extra  bool   // an injected duplicate

	queue    *queue
	receives int
	first    time.Time // of the first receive
	place    place
	visible  time.Time
	index    int // in the due heap
}

type place uint8

const (
	ready place = iota
	inFlight
	delayed
	deleted
)

// group is a FIFO message group. It is locked while a message is in flight.
type group struct {
	name     string
	waiting  []*message // in order
	inFlight int
	queued   bool // in queue.turn
}

type sentOnce struct {
	id  string
	seq uint64
}

type dedupEntry struct {
	key string
	end time.Time
}

// waiter is a long poll.
type waiter struct {
	recv recv
	got  chan []received // buffered: 1
}

// recv says what a receive wants.
type recv struct {
	max        int
	visibility time.Duration
	fault      Fault
}

// received is a message as one receive saw it: a copy, because the message may
// already change again while the answer is written.
type received struct {
	message
	of     *message
	handle string
}

func (s *queues) init(c *Cloud) {
	s.cloud = c
	s.named = map[string]*queue{}
	s.timer = time.AfterFunc(time.Hour, s.tick)
	s.timer.Stop()
}

func (s *queues) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.timer.Stop()
}

func (s *queues) url(name string) string { return s.cloud.url + "/" + AccountID + "/" + name }

func (s *queues) arn(name string) string {
	return "arn:aws:sqs:" + s.cloud.opts.Region + ":" + AccountID + ":" + name
}

// find returns the queue of a URL or name.
func (s *queues) find(url string) (*queue, *apiError) {
	name := url[strings.LastIndexByte(url, '/')+1:]
	if q := s.named[name]; q != nil && (name == url || strings.HasSuffix(url, "/"+AccountID+"/"+name)) {
		return q, nil
	}
	return nil, &apiError{http.StatusBadRequest, "QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue", "The specified queue does not exist."}
}

// seconds is a duration attribute with its limits.
func seconds(lo, hi int) func(string) bool {
	return func(v string) bool {
		n, err := strconv.Atoi(v)
		return err == nil && n >= lo && n <= hi
	}
}

func boolean(v string) bool { return v == "true" || v == "false" }

// settable are the attributes that CreateQueue and SetQueueAttributes take.
var settable = map[string]func(string) bool{
	"DelaySeconds":                  seconds(0, 900),
	"MaximumMessageSize":            seconds(1024, maxMessage),
	"MessageRetentionPeriod":        seconds(60, 1_209_600),
	"ReceiveMessageWaitTimeSeconds": seconds(0, 20),
	"VisibilityTimeout":             seconds(0, 43_200),
	"FifoQueue":                     boolean,
	"ContentBasedDeduplication":     boolean,
	"SqsManagedSseEnabled":          boolean,
	"Policy":                        func(v string) bool { return v == "" || json.Valid([]byte(v)) },
	"RedrivePolicy":                 func(v string) bool { return v == "" || json.Valid([]byte(v)) },
	"RedriveAllowPolicy":            func(v string) bool { return v == "" || json.Valid([]byte(v)) },
	"KmsMasterKeyId":                func(string) bool { return true },
	"KmsDataKeyReusePeriodSeconds":  seconds(60, 86_400),
	"DeduplicationScope":            func(v string) bool { return v == "queue" },
	"FifoThroughputLimit":           func(v string) bool { return v == "perQueue" },
}

// create makes a queue, or finds one with the same attributes.
func (s *queues) create(name string, attrs map[string]string) (*queue, *apiError) {
	stem := strings.TrimSuffix(name, ".fifo")
	legal := strings.Trim(stem, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
	if stem == "" || !legal || len(name) > 80 {
		return nil, invalid("Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length")
	}
	fifo := attrs["FifoQueue"] == "true"
	if fifo != (stem != name) {
		return nil, invalid("The name of a FIFO queue can only include alphanumeric characters, hyphens, or underscores, must end with .fifo suffix")
	}
	if old := s.named[name]; old != nil {
		for k, v := range attrs {
			if old.attrs[k] != v {
				return nil, &apiError{http.StatusBadRequest, "QueueNameExists", "QueueAlreadyExists", "A queue already exists with the same name and a different value for attribute " + k}
			}
		}
		return old, nil
	}
	now := time.Now()
	q := &queue{
		name: name, fifo: fifo, created: now, byToken: map[uint64]*message{}, groups: map[string]*group{}, dedup: map[string]sentOnce{},
		attrs: map[string]string{
			"DelaySeconds": "0", "MaximumMessageSize": strconv.Itoa(maxMessage), "MessageRetentionPeriod": "345600",
			"ReceiveMessageWaitTimeSeconds": "0", "VisibilityTimeout": "30", "SqsManagedSseEnabled": "true",
		},
	}
	if fifo {
		q.attrs["ContentBasedDeduplication"], q.attrs["DeduplicationScope"], q.attrs["FifoThroughputLimit"] = "false", "queue", "perQueue"
	}
	if e := s.configure(q, attrs); e != nil {
		return nil, e
	}
	s.named[name] = q
	return q, nil
}

// configure sets attributes, all or none.
func (s *queues) configure(q *queue, attrs map[string]string) *apiError {
	for k, v := range attrs {
		valid, known := settable[k]
		if !known {
			return &apiError{status: http.StatusBadRequest, code: "InvalidAttributeName", message: "Unknown Attribute " + k + "."}
		}
		if !valid(v) || k == "FifoQueue" && v != strconv.FormatBool(q.fifo) {
			return &apiError{status: http.StatusBadRequest, code: "InvalidAttributeValue", message: "Invalid value for the parameter " + k + "."}
		}
	}
	deadLetter, maxReceives := q.deadLetter, q.maxReceives
	if policy, ok := attrs["RedrivePolicy"]; ok {
		var e *apiError
		if deadLetter, maxReceives, e = s.redrive(q, policy); e != nil {
			return e
		}
	}
	for k, v := range attrs {
		if v == "" {
			delete(q.attrs, k)
			continue
		}
		q.attrs[k] = v
	}
	sec := func(k string) time.Duration {
		n, _ := strconv.Atoi(q.attrs[k])
		return time.Duration(n) * time.Second
	}
	q.visibility, q.delay, q.retention, q.wait = sec("VisibilityTimeout"), sec("DelaySeconds"), sec("MessageRetentionPeriod"), sec("ReceiveMessageWaitTimeSeconds")
	q.maxSize, _ = strconv.Atoi(q.attrs["MaximumMessageSize"])
	q.contentDedup = q.attrs["ContentBasedDeduplication"] == "true"
	q.deadLetter, q.maxReceives = deadLetter, maxReceives
	q.changed = time.Now()
	return nil
}

// redrive reads a redrive policy. maxReceiveCount comes as number or string.
func (s *queues) redrive(q *queue, policy string) (deadLetter string, maxReceives int, _ *apiError) {
	if policy == "" {
		return "", 0, nil
	}
	var p struct {
		Target string          `json:"deadLetterTargetArn"`
		Max    json.RawMessage `json:"maxReceiveCount"`
	}
	_ = json.Unmarshal([]byte(policy), &p) // is valid JSON; a wrong type leaves a zero value
	maxReceives, err := strconv.Atoi(strings.Trim(string(p.Max), `"`))
	deadLetter = p.Target[strings.LastIndexByte(p.Target, ':')+1:]
	target := s.named[deadLetter]
	if err != nil || maxReceives < 1 || maxReceives > 1000 || target == nil || p.Target != s.arn(deadLetter) || target.fifo != q.fifo {
		return "", 0, &apiError{status: http.StatusBadRequest, code: "InvalidParameterValue", message: "Value " + policy + " for parameter RedrivePolicy is invalid."}
	}
	return deadLetter, maxReceives, nil
}

// put stores a message that has been checked. In a FIFO queue a repeated
// deduplication id gives the first message's id and sequence, and stores nothing.
func (s *queues) put(q *queue, m *message, delay time.Duration) (id string, seq uint64) {
	now := time.Now()
	if q.fifo {
		for len(q.recent) > 0 && !now.Before(q.recent[0].end) {
			delete(q.dedup, q.recent[0].key)
			q.recent = q.recent[1:]
		}
		if before, ok := q.dedup[m.dedup]; ok {
			return before.id, before.seq
		}
	}
	s.seq++
	m.token, m.sent = s.seq, now
	if q.fifo {
		q.dedup[m.dedup] = sentOnce{m.id, m.token}
		q.recent = append(q.recent, dedupEntry{m.dedup, now.Add(dedupWindow)})
	}
	q.state.Sent++
	s.adopt(q, m)
	if delay > 0 {
		s.hide(m, delayed, now.Add(delay))
	} else {
		s.show(m)
	}
	return m.id, m.token
}

// adopt makes m a message of q.
func (s *queues) adopt(q *queue, m *message) {
	m.queue = q
	q.byToken[m.token] = m
}

// show makes a message receivable.
func (s *queues) show(m *message) {
	q := m.queue
	m.place = ready
	q.state.Visible++
	if !q.fifo {
		q.ready.push(m)
		return
	}
	g := q.groups[m.group]
	if g == nil {
		g = &group{name: m.group}
		q.groups[m.group] = g
	}
	at, _ := slices.BinarySearchFunc(g.waiting, m, func(a, b *message) int {
		if a.token < b.token {
			return -1
		}
		return 1
	})
	g.waiting = slices.Insert(g.waiting, at, m)
	q.enqueue(g)
}

// enqueue gives a FIFO group its turn when it has something and is not locked.
func (q *queue) enqueue(g *group) {
	switch {
	case g.inFlight > 0 || g.queued:
	case len(g.waiting) > 0:
		g.queued = true
		q.turn = append(q.turn, g)
	default:
		delete(q.groups, g.name)
	}
}

// hide puts a message aside until t.
func (s *queues) hide(m *message, where place, t time.Time) {
	m.place, m.visible = where, t
	if where == inFlight {
		m.queue.state.InFlight++
	} else {
		m.queue.state.Delayed++
	}
	heap.Push(&s.due, m)
	s.arm()
}

// unhide takes a hidden message out of the heap.
func (s *queues) unhide(m *message) {
	heap.Remove(&s.due, m.index)
	if m.place == delayed {
		m.queue.state.Delayed--
		return
	}
	m.queue.state.InFlight--
	if m.queue.fifo {
		m.queue.groups[m.group].inFlight--
	}
}

// arm sets the timer for the first message that is due.
func (s *queues) arm() {
	if len(s.due) == 0 || s.closed {
		return
	}
	if first := s.due[0].visible; s.armed.IsZero() || first.Before(s.armed) {
		s.armed = first
		s.timer.Reset(time.Until(first))
	}
}

// tick shows what is due.
func (s *queues) tick() {
	s.mu.Lock()
	s.armed = time.Time{}
	now := time.Now()
	for !s.closed && len(s.due) > 0 && !s.due[0].visible.After(now) {
		m := s.due[0]
		s.unhide(m)
		s.show(m)
		s.serve(m.queue)
	}
	s.arm()
	s.mu.Unlock()
	s.cloud.changed.fire()
}

// serve hands visible messages to the long polls of q.
func (s *queues) serve(q *queue) {
	for len(q.waiters) > 0 && q.state.Visible > 0 {
		w := q.waiters[0]
		got := s.take(q, w.recv)
		if len(got) == 0 {
			return
		}
		q.waiters = q.waiters[1:]
		q.state.Waiting--
		w.got <- got
	}
}

// receive takes messages, and waits for the first when there is none. It
// returns nothing when wait or ctx ends.
func (s *queues) receive(ctx context.Context, q *queue, r recv, wait time.Duration) ([]received, *apiError) {
	s.mu.Lock()
	if q.state.InFlight >= maxInFlight && wait == 0 {
		s.mu.Unlock()
		return nil, &apiError{http.StatusForbidden, "OverLimit", "OverLimit", "Too many messages in flight."}
	}
	got := s.take(q, r)
	if len(got) > 0 || wait == 0 {
		s.mu.Unlock()
		return got, nil
	}
	w := &waiter{recv: r, got: make(chan []received, 1)}
	q.waiters = append(q.waiters, w)
	q.state.Waiting++
	s.mu.Unlock()
	s.cloud.changed.fire()

	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case got := <-w.got:
		return got, nil
	case <-t.C:
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(q.waiters, w); i >= 0 {
		q.waiters = slices.Delete(q.waiters, i, i+1)
		q.state.Waiting--
		return nil, nil
	}
	got = <-w.got // served in the last moment
	if got != nil && ctx.Err() != nil {
		for _, m := range got { // nobody to hand it to: visible again at once
			if m.of.place == inFlight && m.of.receives == m.receives {
				s.unhide(m.of)
				s.show(m.of)
			}
		}
		s.serve(q)
		return nil, nil
	}
	return got, nil
}

// take receives up to r.max visible messages.
func (s *queues) take(q *queue, r recv) []received {
	now := time.Now()
	var got []received
	var locked []*group
	for len(got) < r.max && q.state.InFlight < maxInFlight {
		m := q.next(r.fault.Shuffle)
		if m == nil {
			break
		}
		q.state.Visible--
		switch {
		case q.retention > 0 && now.Sub(m.sent) > q.retention:
			m.place = deleted
			delete(q.byToken, m.token)
			continue
		case q.deadLetter != "" && m.receives >= q.maxReceives && s.named[q.deadLetter] != nil:
			s.bury(q, m)
			continue
		}
		m.receives++
		if m.receives == 1 {
			m.first = now
		}
		q.state.Received++
		s.hide(m, inFlight, now.Add(r.visibility))
		if q.fifo {
			g := q.groups[m.group]
			if g.inFlight++; !slices.Contains(locked, g) {
				locked = append(locked, g)
			}
		}
		got = append(got, received{message: *m, of: m, handle: handle(m)})
		if r.fault.Duplicate && !q.fifo && !m.extra {
			s.double(m)
		}
	}
	for _, g := range locked { // they lose their turn until nothing of theirs is in flight
		if g.queued {
			g.queued = false
			q.turn = slices.DeleteFunc(q.turn, func(t *group) bool { return t == g })
		}
	}
	return got
}

// next takes the next visible message off the queue.
func (q *queue) next(shuffle bool) *message {
	if !q.fifo {
		return q.ready.pop(shuffle)
	}
	for len(q.turn) > 0 {
		g := q.turn[0]
		if len(g.waiting) > 0 {
			m := g.waiting[0]
			g.waiting = g.waiting[1:]
			return m
		}
		g.queued = false
		q.turn = q.turn[1:]
		q.enqueue(g)
	}
	return nil
}

// bury moves a message to the dead-letter queue, where it keeps its id and its
// sent time and is counted anew.
func (s *queues) bury(q *queue, m *message) {
	delete(q.byToken, m.token)
	q.state.DeadLettered++
	dead := s.named[q.deadLetter]
	m.source = s.arn(q.name)
	s.seq++
	m.token, m.receives = s.seq, 0 // handles of the source queue die
	s.adopt(dead, m)
	s.show(m)
	dead.state.Sent++
	s.serve(dead)
}

// double has a message arrive once more, whatever happens to the first.
func (s *queues) double(m *message) {
	again := *m
	s.seq++
	again.token, again.extra = s.seq, true
	s.adopt(m.queue, &again)
	s.show(&again)
}

// delete removes a message by its handle. A handle of an earlier receive, or of
// a message that is gone, changes nothing and is no error, as in SQS.
func (s *queues) delete(q *queue, h string) *apiError {
	m, current, e := q.byHandle(h)
	if e != nil || m == nil {
		return e
	}
	if q.fifo && (!current || m.place != inFlight) {
		return invalid("Value " + h + " for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.")
	}
	if !current {
		return nil
	}
	switch m.place {
	case inFlight:
		s.unhide(m)
	case ready: // its visibility timeout has passed, nobody has received it since
		q.ready.remove(m)
		q.state.Visible--
	case delayed, deleted:
		return nil
	}
	m.place = deleted
	delete(q.byToken, m.token)
	q.state.Deleted++
	if q.fifo {
		q.enqueue(q.groups[m.group])
		s.serve(q)
	}
	return nil
}

// extend changes the visibility timeout of a message in flight.
func (s *queues) extend(q *queue, h string, visibility time.Duration) *apiError {
	m, current, e := q.byHandle(h)
	if e != nil {
		return e
	}
	if m == nil {
		return invalid("Value " + h + " for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not available for visibility timeout change.")
	}
	if !current || m.place != inFlight {
		return &apiError{http.StatusBadRequest, "MessageNotInflight", "AWS.SimpleQueueService.MessageNotInflight", "The message referred to is not in flight."}
	}
	s.unhide(m)
	if visibility > 0 {
		s.hide(m, inFlight, time.Now().Add(visibility))
		if q.fifo {
			q.groups[m.group].inFlight++
		}
		return nil
	}
	s.show(m)
	s.serve(q)
	return nil
}

// purge empties a queue.
func (s *queues) purge(q *queue) *apiError {
	if time.Since(q.purged) < purgePause {
		return &apiError{http.StatusForbidden, "PurgeQueueInProgress", "AWS.SimpleQueueService.PurgeQueueInProgress", "Only one PurgeQueue operation on " + q.name + " is allowed every 60 seconds."}
	}
	q.purged = time.Now()
	s.empty(q)
	return nil
}

func (s *queues) empty(q *queue) {
	for _, m := range q.byToken {
		if m.place == inFlight || m.place == delayed {
			s.unhide(m)
		}
		m.place = deleted
	}
	clear(q.byToken)
	clear(q.groups)
	q.ready, q.turn = ring{}, nil
	q.state.Visible = 0
}

// remove deletes a queue. Its long polls end without a message.
func (s *queues) remove(q *queue) {
	s.empty(q)
	delete(s.named, q.name)
	for _, w := range q.waiters {
		w.got <- nil
	}
	q.waiters = nil
}

// A receipt handle is the message's token and its receive count, sealed with a
// checksum so that an invented one is told apart from an old one.
func handle(m *message) string {
	var b [28]byte
	binary.BigEndian.PutUint64(b[:], m.token)
	binary.BigEndian.PutUint64(b[8:], uint64(m.receives))
	binary.BigEndian.PutUint64(b[16:], m.token*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint32(b[24:], crc32.ChecksumIEEE(b[:24]))
	return base64.StdEncoding.EncodeToString(b[:])
}

// byHandle returns the message of a handle, nil when it is gone, and whether the
// handle is the one of its last receive.
func (q *queue) byHandle(h string) (_ *message, current bool, _ *apiError) {
	b, err := base64.StdEncoding.DecodeString(h)
	if err != nil || len(b) != 28 || crc32.ChecksumIEEE(b[:24]) != binary.BigEndian.Uint32(b[24:]) {
		return nil, false, &apiError{http.StatusNotFound, "ReceiptHandleIsInvalid", "ReceiptHandleIsInvalid", fmt.Sprintf("The input receipt handle %q is not a valid receipt handle.", h)}
	}
	m := q.byToken[binary.BigEndian.Uint64(b)]
	return m, m != nil && uint64(m.receives) == binary.BigEndian.Uint64(b[8:]), nil
}

// ring is a queue of messages that grows as needed.
type ring struct {
	buf     []*message
	head, n int
}

func (r *ring) push(m *message) {
	if r.n == len(r.buf) {
		grown := make([]*message, max(16, 2*len(r.buf)))
		for i := range r.n {
			grown[i] = r.buf[(r.head+i)%len(r.buf)]
		}
		r.buf, r.head = grown, 0
	}
	r.buf[(r.head+r.n)%len(r.buf)] = m
	r.n++
}

// pop returns the first message, or any when shuffle is set; nil when there is none.
func (r *ring) pop(shuffle bool) *message {
	if r.n == 0 {
		return nil
	}
	if shuffle {
		i := (r.head + rand.IntN(r.n)) % len(r.buf) //nolint:gosec // order, not secrecy
		r.buf[r.head], r.buf[i] = r.buf[i], r.buf[r.head]
	}
	m := r.buf[r.head]
	r.buf[r.head] = nil
	r.head = (r.head + 1) % len(r.buf)
	r.n--
	return m
}

// remove takes m out, wherever it is. It looks at every message.
func (r *ring) remove(m *message) {
	for i := range r.n {
		at := (r.head + i) % len(r.buf)
		if r.buf[at] != m {
			continue
		}
		r.buf[at] = r.buf[r.head]
		r.buf[r.head] = nil
		r.head = (r.head + 1) % len(r.buf)
		r.n--
		return
	}
}

// dueHeap orders messages by the time at which they become visible.
type dueHeap []*message

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].visible.Before(h[j].visible) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *dueHeap) Push(x any) {
	m := x.(*message) //nolint:forcetypeassert // only messages are pushed
	m.index = len(*h)
	*h = append(*h, m)
}

// Pop implements heap.Interface.
func (h *dueHeap) Pop() any {
	old := *h
	m := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return m
}

func invalid(message string) *apiError {
	return &apiError{http.StatusBadRequest, "InvalidParameterValue", "InvalidParameterValue", message}
}
