package cloud

import (
	"context"
	"crypto/md5" //nolint:gosec // the protocol's checksum
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// maxSQSRequest bounds a request's body: a full batch whose bytes are all escaped.
const maxSQSRequest = 8 << 20

// request holds the parameters of every operation; each uses its own. Absent
// numbers are nil, because zero is a value.
type request struct {
	QueueURL                    string `json:"QueueUrl"`
	QueueName                   string
	QueueOwnerAWSAccountID      string `json:"QueueOwnerAWSAccountId"`
	QueueNamePrefix             string
	NextToken                   string
	MaxResults                  *int
	Attributes                  map[string]string
	AttributeNames              []string
	MessageAttributeNames       []string
	MessageSystemAttributeNames []string
	MaxNumberOfMessages         *int
	VisibilityTimeout           *int
	WaitTimeSeconds             *int
	Entries                     []entry
	entry
}

// entry is one member of a batch, or the whole of a single call.
type entry struct {
	ID                      string `json:"Id"`
	ReceiptHandle           string
	VisibilityTimeout       *int
	MessageBody             string
	DelaySeconds            *int
	MessageAttributes       map[string]attrValue
	MessageSystemAttributes map[string]attrValue
	MessageDeduplicationID  string `json:"MessageDeduplicationId"`
	MessageGroupID          string `json:"MessageGroupId"`
}

type attrValue struct {
	DataType    string
	StringValue *string `json:",omitempty"`
	BinaryValue []byte  `json:",omitempty"`
}

type messageAttr struct {
	name  string
	value attrValue
}

// batchResult is the answer to every batch.
type batchResult struct {
	Successful []batchOK     `json:"Successful"`
	Failed     []batchFailed `json:"Failed,omitempty"`
}

type batchOK struct {
	ID string `json:"Id"`
	*sendResult
}

type batchFailed struct {
	ID          string `json:"Id"`
	SenderFault bool
	Code        string
	Message     string
}

type sendResult struct {
	MessageID              string `json:"MessageId"`
	MD5OfMessageBody       string
	MD5OfMessageAttributes string `json:",omitempty"`
	SequenceNumber         string `json:",omitempty"`
}

func (c *Cloud) serveSQS(w http.ResponseWriter, r *http.Request, op string) {
	h := w.Header()
	h.Set("Content-Type", "application/x-amz-json-1.0")
	h.Set("X-Amzn-Requestid", uuid())
	if e := c.credential(r, "sqs"); e != nil {
		writeSQSError(w, e)
		return
	}
	var req request
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxSQSRequest))
	if err == nil {
		err = json.Unmarshal(body, &req)
	}
	if err != nil {
		writeSQSError(w, &apiError{status: http.StatusBadRequest, code: "SerializationException", message: "The request body is not valid JSON of this operation."})
		return
	}
	// The single calls' own VisibilityTimeout hides the entry's.
	req.entry.VisibilityTimeout = req.VisibilityTimeout

	name := req.QueueURL[strings.LastIndexByte(req.QueueURL, '/')+1:]
	if name == "" {
		name = req.QueueName
	}
	f, e, ok := c.suffer(r.Context(), op, name, "")
	if !ok {
		if e == nil {
			panic(http.ErrAbortHandler)
		}
		f.retryAfter(w)
		writeSQSError(w, e)
		return
	}
	w, finish := cut(w, f)
	defer finish()
	if e := c.authorize(c.caller(r), "sqs:"+strings.TrimSuffix(op, "Batch"), c.sqs.arn(name)); e != nil {
		writeSQSError(w, e)
		return
	}
	answer, e := c.sqs.do(r.Context(), op, &req, f)
	if e != nil {
		writeSQSError(w, e)
		return
	}
	h.Set("Content-Length", strconv.Itoa(len(answer)))
	_, _ = w.Write(answer) //nolint:gosec // JSON for a client that left or not: it gets its messages again
}

func writeSQSError(w http.ResponseWriter, e *apiError) {
	who := "Sender"
	if e.status >= http.StatusInternalServerError {
		who = "Receiver"
	}
	query := e.query
	if query == "" {
		query = e.code
	}
	w.Header().Set("X-Amzn-Query-Error", query+";"+who)
	w.WriteHeader(e.status)
	_, _ = w.Write(encode(map[string]string{"__type": "com.amazonaws.sqs#" + e.code, "message": e.message}))
}

// encode never fails: it is given strings, numbers and maps of them.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func (s *queues) do(ctx context.Context, op string, r *request, f Fault) ([]byte, *apiError) {
	switch op {
	case "CreateQueue":
		s.mu.Lock()
		defer s.mu.Unlock()
		q, e := s.create(r.QueueName, r.Attributes)
		if e != nil {
			return nil, e
		}
		return encode(map[string]string{"QueueUrl": s.url(q.name)}), nil
	case "ListQueues":
		return s.list(r)
	case "GetQueueUrl":
		r.QueueURL = r.QueueName
		if r.QueueOwnerAWSAccountID != "" && r.QueueOwnerAWSAccountID != AccountID {
			r.QueueURL = "" // of an account that does not exist
		}
	}
	s.mu.Lock()
	q, e := s.find(r.QueueURL)
	if e != nil {
		s.mu.Unlock()
		return nil, e
	}
	if op == "ReceiveMessage" {
		s.mu.Unlock()
		return s.receiveMessage(ctx, q, r, f)
	}
	defer s.mu.Unlock()
	switch op {
	case "GetQueueUrl":
		return encode(map[string]string{"QueueUrl": s.url(q.name)}), nil
	case "GetQueueAttributes":
		return s.attributes(q, r.AttributeNames)
	case "SetQueueAttributes":
		return []byte("{}"), s.configure(q, r.Attributes)
	case "ListDeadLetterSourceQueues":
		return s.sources(q), nil
	case "DeleteQueue":
		s.remove(q)
		return []byte("{}"), nil
	case "PurgeQueue":
		return []byte("{}"), s.purge(q)
	case "SendMessage":
		sent, e := s.send(q, &r.entry, f)
		if e != nil {
			return nil, e
		}
		return encode(sent), nil
	case "SendMessageBatch":
		total := 0
		for i := range r.Entries {
			total += size(&r.Entries[i])
		}
		if total > maxMessage {
			return nil, batchError("BatchRequestTooLong", "Batch requests cannot be longer than "+strconv.Itoa(maxMessage)+" bytes. You have sent "+strconv.Itoa(total)+" bytes.")
		}
		return s.batch(r, f, func(e *entry) (*sendResult, *apiError) { return s.send(q, e, f) })
	case "DeleteMessage":
		return []byte("{}"), s.delete(q, r.ReceiptHandle)
	case "DeleteMessageBatch":
		return s.batch(r, f, func(e *entry) (*sendResult, *apiError) { return nil, s.delete(q, e.ReceiptHandle) })
	case "ChangeMessageVisibility":
		return []byte("{}"), s.changeVisibility(q, &r.entry)
	case "ChangeMessageVisibilityBatch":
		return s.batch(r, f, func(e *entry) (*sendResult, *apiError) { return nil, s.changeVisibility(q, e) })
	}
	return nil, &apiError{http.StatusBadRequest, "UnsupportedOperation", "AWS.SimpleQueueService.UnsupportedOperation", "This endpoint does not implement " + op + "."}
}

func batchError(code, message string) *apiError {
	return &apiError{http.StatusBadRequest, code, "AWS.SimpleQueueService." + code, message}
}

// batch carries out 1 to 10 entries, each with its own result.
func (s *queues) batch(r *request, f Fault, do func(*entry) (*sendResult, *apiError)) ([]byte, *apiError) {
	switch n := len(r.Entries); {
	case n == 0:
		return nil, batchError("EmptyBatchRequest", "There should be at least one entry in the request.")
	case n > 10:
		return nil, batchError("TooManyEntriesInBatchRequest", "Maximum number of entries per request are 10. You have sent "+strconv.Itoa(n)+".")
	}
	for i := range r.Entries {
		id := r.Entries[i].ID
		if id == "" || len(id) > 80 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			return nil, batchError("InvalidBatchEntryId", "A batch entry id can only contain alphanumeric characters, hyphens and underscores. It can be at most 80 letters long.")
		}
		for j := range i {
			if r.Entries[j].ID == id {
				return nil, batchError("BatchEntryIdsNotDistinct", "Id "+id+" repeated.")
			}
		}
	}
	res := batchResult{Successful: []batchOK{}}
	for i := range r.Entries {
		var sent *sendResult
		var e *apiError
		refused := ""
		if f.Refuse != nil {
			refused = f.Refuse(r.Entries[i].MessageBody)
		}
		switch {
		case refused != "":
			e = &apiError{status: http.StatusBadRequest, code: refused, message: "injected fault"}
		case i < f.FailEntries:
			code := f.Code
			if code == "" {
				code = "InternalError"
			}
			e = injected(0, code)
		default:
			sent, e = do(&r.Entries[i])
		}
		if e != nil {
			code := e.query
			if code == "" {
				code = e.code
			}
			res.Failed = append(res.Failed, batchFailed{r.Entries[i].ID, e.status < http.StatusInternalServerError, code, e.message})
			continue
		}
		res.Successful = append(res.Successful, batchOK{r.Entries[i].ID, sent})
	}
	return encode(res), nil
}

// size is what counts against the limits: body and attributes.
func size(e *entry) int {
	n := len(e.MessageBody)
	for name, a := range e.MessageAttributes {
		n += len(name) + len(a.DataType) + len(a.BinaryValue)
		if a.StringValue != nil {
			n += len(*a.StringValue)
		}
	}
	return n
}

func (s *queues) send(q *queue, e *entry, f Fault) (*sendResult, *apiError) {
	if e.MessageBody == "" {
		return nil, &apiError{status: http.StatusBadRequest, code: "MissingParameter", message: "The request must contain the parameter MessageBody."}
	}
	if n := size(e); n > q.maxSize {
		return nil, invalid("One or more parameters are invalid. Reason: Message must be shorter than " + strconv.Itoa(q.maxSize) + " bytes.")
	}
	if !legalText(e.MessageBody) {
		return nil, &apiError{http.StatusBadRequest, "InvalidMessageContents", "InvalidMessageContents", "Invalid characters found. Valid unicode characters are #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF"}
	}
	attrs, bad := attributeList(e.MessageAttributes)
	if bad != nil {
		return nil, bad
	}
	delay := q.delay
	if e.DelaySeconds != nil {
		if *e.DelaySeconds < 0 || *e.DelaySeconds > 900 || q.fifo && *e.DelaySeconds != 0 {
			return nil, invalid("Value " + strconv.Itoa(*e.DelaySeconds) + " for parameter DelaySeconds is invalid.")
		}
		if !q.fifo {
			delay = time.Duration(*e.DelaySeconds) * time.Second
		}
	}
	m := &message{id: uuid(), body: e.MessageBody, md5: md5Hex([]byte(e.MessageBody)), attrs: attrs, group: e.MessageGroupID, dedup: e.MessageDeduplicationID}
	if t := e.MessageSystemAttributes["AWSTraceHeader"].StringValue; t != nil {
		m.trace = *t
	}
	switch {
	case !q.fifo:
	case m.group == "":
		return nil, &apiError{status: http.StatusBadRequest, code: "MissingParameter", message: "The request must contain the parameter MessageGroupId."}
	case m.dedup == "" && !q.contentDedup:
		return nil, invalid("The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly")
	case m.dedup == "":
		sum := sha256.Sum256([]byte(m.body))
		m.dedup = hex.EncodeToString(sum[:])
	}
	res := &sendResult{MD5OfMessageBody: m.md5, MD5OfMessageAttributes: md5OfAttributes(attrs)}
	id, seq := s.put(q, m, delay+f.Late)
	res.MessageID = id
	if q.fifo {
		res.SequenceNumber = sequence(seq)
	}
	s.serve(q)
	return res, nil
}

// sequence is a FIFO sequence number: 20 digits that grow.
func sequence(n uint64) string {
	s := strconv.FormatUint(n, 10)
	return "188" + strings.Repeat("0", max(0, 17-len(s))) + s
}

// legalText reports whether SQS accepts the characters of s.
func legalText(s string) bool {
	for i, r := range s {
		switch {
		case r == '\t' || r == '\n' || r == '\r', r >= 0x20 && r <= 0xD7FF, r >= 0xE000 && r < 0xFFFD, r >= 0x10000:
		case r == utf8.RuneError:
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				return false // not UTF-8; a real U+FFFD is legal
			}
		default:
			return false
		}
	}
	return true
}

// attributeList checks message attributes and sorts them by name.
func attributeList(in map[string]attrValue) ([]messageAttr, *apiError) {
	if len(in) > 10 {
		return nil, invalid("Number of message attributes [" + strconv.Itoa(len(in)) + "] exceeds the allowed maximum [10].")
	}
	list := make([]messageAttr, 0, len(in))
	for _, name := range slices.Sorted(maps.Keys(in)) {
		v := in[name]
		kind, _, _ := strings.Cut(v.DataType, ".")
		ok := kind == "Binary" && len(v.BinaryValue) > 0 ||
			(kind == "String" || kind == "Number") && v.StringValue != nil && *v.StringValue != ""
		if !ok || name == "" || len(name) > 256 {
			return nil, invalid("The message attribute '" + name + "' with type '" + v.DataType + "' must use a non-empty value of that type.")
		}
		list = append(list, messageAttr{name, v})
	}
	return list, nil
}

func (s *queues) changeVisibility(q *queue, e *entry) *apiError {
	if e.VisibilityTimeout == nil {
		return &apiError{status: http.StatusBadRequest, code: "MissingParameter", message: "The request must contain the parameter VisibilityTimeout."}
	}
	if *e.VisibilityTimeout < 0 || *e.VisibilityTimeout > 43_200 {
		return invalid("Value " + strconv.Itoa(*e.VisibilityTimeout) + " for parameter VisibilityTimeout is invalid. Reason: Total VisibilityTimeout for the message is beyond the limit [43200 seconds].")
	}
	return s.extend(q, e.ReceiptHandle, time.Duration(*e.VisibilityTimeout)*time.Second)
}

// within reads an optional number.
func within(name string, v *int, otherwise, lo, hi int) (int, *apiError) {
	if v == nil {
		return otherwise, nil
	}
	if *v < lo || *v > hi {
		return 0, invalid("Value " + strconv.Itoa(*v) + " for parameter " + name + " is invalid. Reason: Must be between " + strconv.Itoa(lo) + " and " + strconv.Itoa(hi) + ", if provided.")
	}
	return *v, nil
}

func (s *queues) receiveMessage(ctx context.Context, q *queue, r *request, f Fault) ([]byte, *apiError) {
	s.mu.Lock()
	visibility, wait := q.visibility, q.wait
	s.mu.Unlock()
	n, e := within("MaxNumberOfMessages", r.MaxNumberOfMessages, 1, 1, 10)
	if e != nil {
		return nil, e
	}
	v, e := within("VisibilityTimeout", r.VisibilityTimeout, int(visibility/time.Second), 0, 43_200)
	if e != nil {
		return nil, e
	}
	t, e := within("WaitTimeSeconds", r.WaitTimeSeconds, int(wait/time.Second), 0, 20)
	if e != nil {
		return nil, e
	}
	got, e := s.receive(ctx, q, recv{max: n, visibility: time.Duration(v) * time.Second, fault: f}, time.Duration(t)*time.Second)
	if e != nil {
		return nil, e
	}
	if len(got) == 0 {
		return []byte("{}"), nil
	}
	system := names(append(r.MessageSystemAttributeNames, r.AttributeNames...))
	out := append(make([]byte, 0, 4096), `{"Messages":[`...)
	for i := range got {
		if i > 0 {
			out = append(out, ',')
		}
		out = appendMessage(out, &got[i], system, r.MessageAttributeNames)
	}
	return append(out, "]}"...), nil
}

// names tells which attributes were asked for.
func names(list []string) func(string) bool {
	return func(name string) bool { return slices.Contains(list, "All") || slices.Contains(list, name) }
}

func appendMessage(out []byte, m *received, system func(string) bool, attributeNames []string) []byte {
	out = append(out, `{"MessageId":"`...)
	out = append(out, m.id...)
	out = append(out, `","ReceiptHandle":"`...)
	out = append(out, m.handle...)
	out = append(out, `","MD5OfBody":"`...)
	out = append(out, m.md5...)
	out = append(out, `","Body":`...)
	out = appendString(out, m.body)

	sep := `,"Attributes":{"`
	attr := func(name, value string) {
		if value == "" || !system(name) {
			return
		}
		out = append(append(append(out, sep...), name...), `":`...)
		out = appendString(out, value)
		sep = `,"`
	}
	attr("ApproximateReceiveCount", strconv.Itoa(m.receives))
	attr("ApproximateFirstReceiveTimestamp", strconv.FormatInt(m.first.UnixMilli(), 10))
	attr("SentTimestamp", strconv.FormatInt(m.sent.UnixMilli(), 10))
	attr("SenderId", "AIDAPENSTOCKDEMO00001")
	attr("MessageGroupId", m.group)
	attr("AWSTraceHeader", m.trace)
	attr("DeadLetterQueueSourceArn", m.source)
	if m.dedup != "" {
		attr("MessageDeduplicationId", m.dedup)
		attr("SequenceNumber", sequence(m.token))
	}
	if sep == `,"` {
		out = append(out, '}')
	}

	chosen := m.attrs[:0:0]
	for _, a := range m.attrs {
		if wanted(a.name, attributeNames) {
			chosen = append(chosen, a)
		}
	}
	if len(chosen) > 0 {
		values := make(map[string]attrValue, len(chosen))
		for _, a := range chosen {
			values[a.name] = a.value
		}
		out = append(append(out, `,"MD5OfMessageAttributes":"`...), md5OfAttributes(chosen)...)
		out = append(append(out, `","MessageAttributes":`...), encode(values)...)
	}
	return append(out, '}')
}

// wanted applies MessageAttributeNames: "All", ".*", a name, or a prefix as "foo.*".
func wanted(name string, list []string) bool {
	for _, want := range list {
		prefix, isPrefix := strings.CutSuffix(want, ".*")
		if want == "All" || want == name || isPrefix && strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// appendString appends s, which is valid UTF-8, as a JSON string.
func appendString(out []byte, s string) []byte {
	const digits = "0123456789abcdef"
	out = append(out, '"')
	from := 0
	for i := range len(s) {
		b := s[i]
		if b >= 0x20 && b != '"' && b != '\\' {
			continue
		}
		out = append(out, s[from:i]...)
		from = i + 1
		switch b {
		case '"', '\\':
			out = append(out, '\\', b)
		case '\n':
			out = append(out, `\n`...)
		default:
			out = append(out, '\\', 'u', '0', '0', digits[b>>4], digits[b&15])
		}
	}
	return append(append(out, s[from:]...), '"')
}

// md5OfAttributes is the digest that clients check. Source: Amazon SQS Developer
// Guide, "Calculating the MD5 message digest for message attributes".
func md5OfAttributes(attrs []messageAttr) string {
	if len(attrs) == 0 {
		return ""
	}
	var b []byte
	field := func(v []byte) { b = append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...) }
	for _, a := range attrs {
		field([]byte(a.name))
		field([]byte(a.value.DataType))
		if a.value.StringValue != nil {
			b = append(b, 1)
			field([]byte(*a.value.StringValue))
			continue
		}
		b = append(b, 2)
		field(a.value.BinaryValue)
	}
	return md5Hex(b)
}

func md5Hex(b []byte) string {
	sum := md5.Sum(b) //nolint:gosec // the protocol's checksum
	return hex.EncodeToString(sum[:])
}

// uuid returns a random UUID. It is no secret.
func uuid() string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], rand.Uint64())  //nolint:gosec // no secret
	binary.BigEndian.PutUint64(b[8:], rand.Uint64()) //nolint:gosec // no secret
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	var s [36]byte
	hex.Encode(s[:], b[:4])
	s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	hex.Encode(s[9:], b[4:6])
	hex.Encode(s[14:], b[6:8])
	hex.Encode(s[19:], b[8:10])
	hex.Encode(s[24:], b[10:])
	return string(s[:])
}

// attributes answers GetQueueAttributes.
func (s *queues) attributes(q *queue, list []string) ([]byte, *apiError) {
	all := maps.Clone(q.attrs)
	all["QueueArn"] = s.arn(q.name)
	all["CreatedTimestamp"] = strconv.FormatInt(q.created.Unix(), 10)
	all["LastModifiedTimestamp"] = strconv.FormatInt(q.changed.Unix(), 10)
	all["ApproximateNumberOfMessages"] = strconv.Itoa(q.state.Visible)
	all["ApproximateNumberOfMessagesNotVisible"] = strconv.Itoa(q.state.InFlight)
	all["ApproximateNumberOfMessagesDelayed"] = strconv.Itoa(q.state.Delayed)
	asked := names(list)
	maps.DeleteFunc(all, func(name, _ string) bool { return !asked(name) })
	for _, name := range list {
		_, known := settable[name]
		_, there := all[name]
		if !known && !there && name != "All" {
			return nil, &apiError{status: http.StatusBadRequest, code: "InvalidAttributeName", message: "Unknown Attribute " + name + "."}
		}
	}
	if len(all) == 0 {
		return []byte("{}"), nil
	}
	return encode(map[string]any{"Attributes": all}), nil
}

// list answers ListQueues. The token is the last name of the page before.
func (s *queues) list(r *request) ([]byte, *apiError) {
	n, e := within("MaxResults", r.MaxResults, 1000, 1, 1000)
	if e != nil {
		return nil, e
	}
	after := ""
	if r.NextToken != "" {
		b, err := base64.StdEncoding.DecodeString(r.NextToken)
		if err != nil {
			return nil, invalid("Invalid NextToken value.")
		}
		after = string(b)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := struct {
		QueueURLs []string `json:"QueueUrls,omitempty"`
		NextToken string   `json:",omitempty"`
	}{}
	last := ""
	for _, name := range slices.Sorted(maps.Keys(s.named)) {
		if name <= after || !strings.HasPrefix(name, r.QueueNamePrefix) {
			continue
		}
		if len(answer.QueueURLs) == n {
			answer.NextToken = base64.StdEncoding.EncodeToString([]byte(last))
			break
		}
		answer.QueueURLs, last = append(answer.QueueURLs, s.url(name)), name
	}
	return encode(answer), nil
}

// sources answers ListDeadLetterSourceQueues.
func (s *queues) sources(q *queue) []byte {
	urls := []string{}
	for _, name := range slices.Sorted(maps.Keys(s.named)) {
		if s.named[name].deadLetter == q.name {
			urls = append(urls, s.url(name))
		}
	}
	return encode(map[string]any{"queueUrls": urls})
}

// CreateQueue makes a queue and returns its URL. A name that ends in .fifo makes
// a FIFO queue. attrs are SQS attributes and may be nil. A queue that exists
// with the same attributes is left as it is. Fails with demo.refused.
func (c *Cloud) CreateQueue(name string, attrs map[string]string) (string, error) {
	if strings.HasSuffix(name, ".fifo") {
		attrs = maps.Clone(attrs)
		if attrs == nil {
			attrs = map[string]string{}
		}
		attrs["FifoQueue"] = "true"
	}
	c.sqs.mu.Lock()
	defer c.sqs.mu.Unlock()
	if _, e := c.sqs.create(name, attrs); e != nil {
		return "", errRefused.New(e, "create queue %s", name)
	}
	return c.sqs.url(name), nil
}

// QueueURL is the URL of a queue, whether it exists or not.
func (c *Cloud) QueueURL(name string) string { return c.sqs.url(name) }

// Send puts messages into a standard queue and returns their ids. It stops at
// the first that is refused (demo.refused).
func (c *Cloud) Send(queue string, bodies ...string) ([]string, error) {
	defer c.changed.fire()
	c.sqs.mu.Lock()
	defer c.sqs.mu.Unlock()
	ids := make([]string, 0, len(bodies))
	for _, body := range bodies {
		q, e := c.sqs.find(queue)
		if e == nil {
			var sent *sendResult
			if sent, e = c.sqs.send(q, &entry{MessageBody: body}, Fault{}); e == nil {
				ids = append(ids, sent.MessageID)
				continue
			}
		}
		return ids, errRefused.New(e, "send to queue %s", queue)
	}
	return ids, nil
}

// Sent is a message that waits in a queue.
type Sent struct {
	Body string
	// Attributes are the message attributes of type String.
	Attributes map[string]string
	// Group and Dedup are those of a FIFO queue.
	Group, Dedup string
}

// Messages returns all messages of a queue in the order in which they were sent,
// without receiving them.
func (c *Cloud) Messages(queue string) []Sent {
	c.sqs.mu.Lock()
	defer c.sqs.mu.Unlock()
	q := c.sqs.named[queue]
	if q == nil {
		return nil
	}
	list := make([]Sent, 0, len(q.byToken))
	for _, token := range slices.Sorted(maps.Keys(q.byToken)) {
		m := q.byToken[token]
		sent := Sent{Body: m.body, Group: m.group, Dedup: m.dedup, Attributes: map[string]string{}}
		for _, a := range m.attrs {
			if a.value.StringValue != nil {
				sent.Attributes[a.name] = *a.value.StringValue
			}
		}
		list = append(list, sent)
	}
	return list
}

// Queue returns the state of a queue, all zero when there is none of that name.
func (c *Cloud) Queue(name string) QueueState {
	c.sqs.mu.Lock()
	defer c.sqs.mu.Unlock()
	if q := c.sqs.named[name]; q != nil {
		return q.state
	}
	return QueueState{}
}
