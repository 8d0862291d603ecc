package cloud

import (
	"encoding/base64"
	"encoding/xml"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const xmlns = "http://s3.amazonaws.com/doc/2006-03-01/"

func (c *Cloud) serveS3(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Amz-Request-Id", strings.ToUpper(uuid()[:16]))
	h.Set("X-Amz-Id-2", uuid())
	h.Set("Server", "AmazonS3")
	name, key := address(r)
	if e := c.credential(r, "s3"); e != nil {
		writeS3Error(w, r, e)
		return
	}
	op := operation(r, name, key)
	f, e, ok := c.suffer(r.Context(), op, name, key)
	if !ok {
		if e == nil {
			panic(http.ErrAbortHandler)
		}
		f.retryAfter(w)
		writeS3Error(w, r, e)
		return
	}
	w, finish := cut(w, f)
	defer finish()
	if e := c.mayS3(r, op, name, key); e != nil {
		writeS3Error(w, r, e)
		return
	}
	if e := c.s3.do(w, r, op, name, key); e != nil {
		writeS3Error(w, r, e)
	}
}

// mayS3 asks the policy of the caller. A key that is not there looks like one that
// may not be read to who may not list the bucket. Source: Amazon S3 API Reference,
// GetObject, permissions.
func (c *Cloud) mayS3(r *http.Request, op, name, key string) *apiError {
	who := c.caller(r)
	if who.policy == nil {
		return nil
	}
	bucket := "arn:aws:s3:::" + name
	action, resource := "s3:"+op, bucket
	switch op {
	case "ListObjectsV2", "HeadBucket":
		action = "s3:ListBucket"
	case "ListBuckets":
		action, resource = "s3:ListAllMyBuckets", "*"
	case "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload":
		action, resource = "s3:PutObject", bucket+"/"+key
	case "AbortMultipartUpload":
		resource = bucket + "/" + key
	case "GetObject", "HeadObject", "PutObject", "DeleteObject":
		action, resource = "s3:"+strings.Replace(op, "Head", "Get", 1), bucket+"/"+key
		if r.URL.Query().Get("versionId") != "" {
			action += "Version"
		}
	}
	if e := c.authorize(who, action, resource, "s3:prefix", r.URL.Query().Get("prefix")); e != nil || key == "" {
		return e
	}
	if e := c.mayEncrypt(r, who, op); e != nil {
		return e
	}
	c.s3.mu.RLock()
	b, e := c.s3.bucket(name)
	var v *version
	if e == nil {
		v, e = b.find(key, r.URL.Query().Get("versionId"))
	}
	c.s3.mu.RUnlock()
	if e != nil && e.code == "NoSuchKey" && (op == "GetObject" || op == "HeadObject") {
		return c.authorize(who, "s3:ListBucket", bucket)
	}
	if v != nil && v.KMSKey != "" && op == "GetObject" {
		return c.authorize(who, "kms:Decrypt", v.KMSKey, "kms:ViaService", "s3."+c.opts.Region+".amazonaws.com")
	}
	return nil
}

// address returns bucket and key of a request: path style, or with the bucket
// before ".localhost" in the host name.
func address(r *http.Request) (bucket, key string) {
	path := strings.TrimPrefix(r.URL.Path, "/")
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if b, ok := strings.CutSuffix(host, ".localhost"); ok {
		return b, path
	}
	bucket, key, _ = strings.Cut(path, "/")
	return bucket, key
}

// harmless query parameters choose no other operation.
var harmless = []string{
	"x-id", "versionId", "list-type", "prefix", "delimiter", "start-after", "max-keys", "continuation-token", "encoding-type", "fetch-owner",
	"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Signature", "X-Amz-Security-Token",
	"x-amz-checksum-mode", "max-buckets",
}

// operation names what is asked for, in the words of the API reference.
func operation(r *http.Request, bucket, key string) string {
	q := r.URL.Query()
	sub := ""
	for k := range q {
		if !slices.Contains(harmless, k) {
			sub = k
		}
	}
	switch {
	case r.Header.Get("X-Amz-Copy-Source") != "":
		return "CopyObject"
	case bucket == "" && r.Method == http.MethodGet && sub == "":
		return "ListBuckets"
	case bucket == "":
		return "Unknown"
	case key != "" && (q.Has("uploads") || q.Has("uploadId")):
		return multipart(r.Method, q)
	case key != "" && sub == "":
		return map[string]string{
			http.MethodGet: "GetObject", http.MethodHead: "HeadObject", http.MethodPut: "PutObject", http.MethodDelete: "DeleteObject",
		}[r.Method]
	case key != "":
		return "Unknown"
	case sub == "location" && r.Method == http.MethodGet:
		return "GetBucketLocation"
	case sub == "versioning" && r.Method == http.MethodGet:
		return "GetBucketVersioning"
	case sub == "versioning" && r.Method == http.MethodPut:
		return "PutBucketVersioning"
	case sub != "":
		return "Unknown"
	case r.Method == http.MethodGet && q.Get("list-type") == "2":
		return "ListObjectsV2"
	}
	return map[string]string{
		http.MethodHead: "HeadBucket", http.MethodPut: "CreateBucket", http.MethodDelete: "DeleteBucket",
	}[r.Method]
}

func (s *store) do(w http.ResponseWriter, r *http.Request, op, name, key string) *apiError {
	switch op {
	case "GetObject", "HeadObject":
		return s.getObject(w, r, name, key)
	case "PutObject":
		return s.putObject(w, r, name, key)
	case "CreateMultipartUpload":
		return s.createUpload(w, r, name, key)
	case "UploadPart":
		return s.uploadPart(w, r, name, key)
	case "CompleteMultipartUpload":
		return s.completeUpload(w, r, name, key)
	case "AbortMultipartUpload":
		return s.abortUpload(w, r, name, key)
	case "DeleteObject":
		marker, e := s.delete(name, key, r.URL.Query().Get("versionId"))
		if e != nil {
			return e
		}
		if marker != nil {
			w.Header().Set("X-Amz-Delete-Marker", "true")
			w.Header().Set("X-Amz-Version-Id", marker.id)
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	case "ListObjectsV2":
		return s.listObjects(w, r, name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch op {
	case "ListBuckets":
		s.listBuckets(w)
		return nil
	case "CreateBucket":
		_, _ = io.Copy(io.Discard, r.Body) // the location constraint does not matter
		if e := s.create(name, BucketOptions{}); e != nil {
			return e
		}
		w.Header().Set("Location", "/"+name)
		return nil
	}
	b, e := s.bucket(name)
	if e != nil {
		return e
	}
	switch op {
	case "HeadBucket":
		w.Header().Set("X-Amz-Bucket-Region", s.cloud.opts.Region)
	case "DeleteBucket":
		if len(b.objects) > 0 {
			return &apiError{status: http.StatusConflict, code: "BucketNotEmpty", message: "The bucket you tried to delete is not empty"}
		}
		delete(s.buckets, name)
		w.WriteHeader(http.StatusNoContent)
	case "GetBucketLocation":
		location := s.cloud.opts.Region
		if location == "us-east-1" {
			location = ""
		}
		writeXML(w, struct {
			XMLName xml.Name `xml:"LocationConstraint"`
			Xmlns   string   `xml:"xmlns,attr"`
			Value   string   `xml:",chardata"`
		}{Xmlns: xmlns, Value: location})
	case "GetBucketVersioning":
		status := ""
		if b.versioned {
			status = "Enabled"
		}
		writeXML(w, versioning{Xmlns: xmlns, Status: status})
	case "PutBucketVersioning":
		var v versioning
		if err := xml.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&v); err != nil || v.Status != "Enabled" {
			return &apiError{status: http.StatusNotImplemented, code: "NotImplemented", message: "Versioning can be enabled, not suspended."}
		}
		b.versioned = true
	default:
		return &apiError{status: http.StatusNotImplemented, code: "NotImplemented", message: "This endpoint does not implement " + r.Method + " " + r.URL.RawQuery + "."}
	}
	return nil
}

type versioning struct {
	XMLName xml.Name `xml:"VersioningConfiguration"`
	Xmlns   string   `xml:"xmlns,attr,omitempty"`
	Status  string   `xml:"Status,omitempty"`
}

func (s *store) getObject(w http.ResponseWriter, r *http.Request, name, key string) *apiError {
	s.mu.RLock()
	b, e := s.bucket(name)
	var v *version
	if e == nil {
		v, e = b.find(key, r.URL.Query().Get("versionId"))
	}
	s.mu.RUnlock()
	if e != nil {
		return e
	}
	h := w.Header()
	setValidators(h, v)
	if e := precondition(r.Header, v); e != nil {
		return e
	}
	from, to, partial, e := byteRange(r.Header.Get("Range"), v.size)
	if e != nil {
		h.Set("Content-Range", "bytes */"+strconv.FormatInt(v.size, 10))
		return e
	}
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Length", strconv.FormatInt(to-from, 10))
	h.Set("Content-Type", "binary/octet-stream")
	if v.ContentType != "" {
		h.Set("Content-Type", v.ContentType)
	}
	if v.ContentEncoding != "" {
		h.Set("Content-Encoding", v.ContentEncoding)
	}
	for k, value := range v.Metadata {
		h.Set("X-Amz-Meta-"+k, value)
	}
	setEncryption(h, &v.Object)
	if v.StorageClass != "" {
		h.Set("X-Amz-Storage-Class", v.StorageClass)
	}
	if !partial && v.crc32 != "" && strings.EqualFold(r.Header.Get("X-Amz-Checksum-Mode"), "enabled") {
		h.Set("X-Amz-Checksum-Crc32", v.crc32)
		h.Set("X-Amz-Checksum-Type", "FULL_OBJECT")
	}
	if partial {
		h.Set("Content-Range", "bytes "+strconv.FormatInt(from, 10)+"-"+strconv.FormatInt(to-1, 10)+"/"+strconv.FormatInt(v.size, 10))
		w.WriteHeader(http.StatusPartialContent)
	}
	switch {
	case r.Method == http.MethodHead:
	case v.Write == nil:
		_, _ = w.Write(v.Body[from:to]) // a client that left asks again
	default:
		win := &window{w: w, skip: from, left: to - from}
		if err := v.Write(win); win.left > 0 || err != nil && !errors.Is(err, errEnough) {
			panic(http.ErrAbortHandler) // cut off: the client must not take it for whole
		}
	}
	return nil
}

func setValidators(h http.Header, v *version) {
	h.Set("Etag", `"`+v.etag+`"`)
	h.Set("Last-Modified", v.modified.UTC().Format(http.TimeFormat))
	if v.id != "" {
		h.Set("X-Amz-Version-Id", v.id)
	}
}

// precondition applies the conditional headers in the order of RFC 9110.
func precondition(h http.Header, v *version) *apiError {
	failed := &apiError{status: http.StatusPreconditionFailed, code: "PreconditionFailed", message: "At least one of the pre-conditions you specified did not hold"}
	same := &apiError{status: http.StatusNotModified, code: "NotModified", message: "Not Modified"}
	if want := h.Get("If-Match"); want != "" {
		if !matches(want, v) {
			return failed
		}
	} else if t, err := http.ParseTime(h.Get("If-Unmodified-Since")); err == nil && v.modified.After(t) {
		return failed
	}
	if not := h.Get("If-None-Match"); not != "" {
		if matches(not, v) {
			return same
		}
	} else if t, err := http.ParseTime(h.Get("If-Modified-Since")); err == nil && !v.modified.After(t) {
		return same
	}
	return nil
}

func matches(header string, v *version) bool {
	for tag := range strings.SplitSeq(header, ",") {
		tag = strings.TrimSpace(tag)
		if tag == "*" || strings.Trim(tag, `"`) == v.etag {
			return true
		}
	}
	return false
}

// byteRange reads a Range header of one range: [from, to). Others are ignored.
func byteRange(header string, size int64) (from, to int64, partial bool, _ *apiError) {
	spec, ok := strings.CutPrefix(header, "bytes=")
	first, last, dash := strings.Cut(spec, "-")
	if !ok || !dash || strings.Contains(spec, ",") {
		return 0, size, false, nil
	}
	from, errFrom := strconv.ParseInt(first, 10, 64)
	to, errTo := strconv.ParseInt(last, 10, 64)
	switch {
	case first == "" && errTo == nil: // the last n bytes
		from, to = max(0, size-to), size
	case errFrom == nil && last == "":
		to = size
	case errFrom == nil && errTo == nil && from <= to:
		to = min(to+1, size)
	default:
		return 0, size, false, nil
	}
	if from >= size || from < 0 || from >= to {
		return 0, 0, false, &apiError{status: http.StatusRequestedRangeNotSatisfiable, code: "InvalidRange", message: "The requested range is not satisfiable"}
	}
	return from, to, true, nil
}

// errEnough ends a generator whose range has been written.
var errEnough = errors.New("range written")

// window passes a part of what is written to it.
type window struct {
	w          io.Writer
	skip, left int64
}

func (w *window) Write(p []byte) (int, error) {
	if w.left == 0 {
		return 0, errEnough
	}
	n := len(p)
	if w.skip > 0 {
		d := min(w.skip, int64(len(p)))
		w.skip -= d
		p = p[d:]
	}
	p = p[:min(int64(len(p)), w.left)]
	if len(p) > 0 {
		m, err := w.w.Write(p)
		w.left -= int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (s *store) putObject(w http.ResponseWriter, r *http.Request, name, key string) *apiError {
	body, e := readBody(r)
	if e != nil {
		return e
	}
	o, e := described(r.Header)
	if e != nil {
		return e
	}
	o.Body = body
	v := newVersion(key, o)
	if _, e := s.put(name, v, writable(r.Header)); e != nil {
		return e
	}
	setValidators(w.Header(), v)
	w.Header().Del("Last-Modified")
	w.Header().Set("X-Amz-Checksum-Crc32", v.crc32)
	setEncryption(w.Header(), &v.Object)
	return nil
}

// described reads the headers that a put and the beginning of an upload share.
func described(h http.Header) (Object, *apiError) {
	o := Object{ContentType: h.Get("Content-Type"), StorageClass: h.Get("X-Amz-Storage-Class"), ACL: h.Get("X-Amz-Acl")}
	for part := range strings.SplitSeq(strings.Join(h.Values("Content-Encoding"), ","), ",") {
		if part = strings.TrimSpace(part); part != "" && part != "aws-chunked" {
			o.ContentEncoding = part
		}
	}
	for k, v := range h {
		if meta, ok := strings.CutPrefix(k, "X-Amz-Meta-"); ok {
			if o.Metadata == nil {
				o.Metadata = map[string]string{}
			}
			o.Metadata[meta] = v[0]
		}
	}
	o.Encryption = h.Get("X-Amz-Server-Side-Encryption")
	o.BucketKey = h.Get("X-Amz-Server-Side-Encryption-Bucket-Key-Enabled") == "true"
	key := h.Get("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id")
	switch o.Encryption {
	case "", "AES256":
		if key != "" || o.BucketKey {
			return o, &apiError{status: http.StatusBadRequest, code: "InvalidArgument", message: "Server Side Encryption with AWS KMS managed key requires HTTP header x-amz-server-side-encryption : aws:kms"}
		}
	case "aws:kms":
		if o.KMSKey = key; key == "" {
			o.KMSKey = awsManagedKey
		}
	default:
		return o, &apiError{status: http.StatusBadRequest, code: "InvalidArgument", message: "The encryption method specified is not supported"}
	}
	return o, nil
}

// awsManagedKey encrypts where no key is named.
const awsManagedKey = "arn:aws:kms:us-east-1:" + AccountID + ":alias/aws/s3"

func setEncryption(h http.Header, o *Object) {
	switch {
	case o.KMSKey != "":
		h.Set("X-Amz-Server-Side-Encryption", "aws:kms")
		h.Set("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id", o.KMSKey)
	case o.Encryption != "":
		h.Set("X-Amz-Server-Side-Encryption", o.Encryption)
	}
	if o.BucketKey {
		h.Set("X-Amz-Server-Side-Encryption-Bucket-Key-Enabled", "true")
	}
}

// writable checks the conditional headers of a write.
func writable(h http.Header) func(latest *version) *apiError {
	return func(latest *version) *apiError {
		switch {
		case h.Get("If-None-Match") != "" && latest != nil, h.Get("If-Match") != "" && latest != nil && !matches(h.Get("If-Match"), latest):
			return &apiError{status: http.StatusPreconditionFailed, code: "PreconditionFailed", message: "At least one of the pre-conditions you specified did not hold"}
		case h.Get("If-Match") != "" && latest == nil:
			return &apiError{status: http.StatusNotFound, code: "NoSuchKey", message: "The specified key does not exist."}
		}
		return nil
	}
}

type listResult struct {
	XMLName               xml.Name     `xml:"ListBucketResult"`
	Xmlns                 string       `xml:"xmlns,attr"`
	Name                  string       `xml:"Name"`
	Prefix                string       `xml:"Prefix"`
	StartAfter            string       `xml:"StartAfter,omitempty"`
	ContinuationToken     string       `xml:"ContinuationToken,omitempty"`
	NextContinuationToken string       `xml:"NextContinuationToken,omitempty"`
	KeyCount              int          `xml:"KeyCount"`
	MaxKeys               int          `xml:"MaxKeys"`
	Delimiter             string       `xml:"Delimiter,omitempty"`
	EncodingType          string       `xml:"EncodingType,omitempty"`
	IsTruncated           bool         `xml:"IsTruncated"`
	Contents              []listObject `xml:"Contents"`
	CommonPrefixes        []listPrefix `xml:"CommonPrefixes"`
}

type listObject struct {
	Key          string `xml:"Key"`
	LastModified string `xml:"LastModified"`
	ETag         string `xml:"ETag"`
	Size         int64  `xml:"Size"`
	StorageClass string `xml:"StorageClass"`
}

type listPrefix struct {
	Prefix string `xml:"Prefix"`
}

func (s *store) listObjects(w http.ResponseWriter, r *http.Request, name string) *apiError {
	q := r.URL.Query()
	n := 1000
	if v := q.Get("max-keys"); v != "" {
		m, err := strconv.Atoi(v)
		if err != nil || m < 0 {
			return &apiError{status: http.StatusBadRequest, code: "InvalidArgument", message: "Provided max-keys not an integer or within integer range"}
		}
		n = min(m, 1000)
	}
	res := listResult{
		Xmlns: xmlns, Name: name, Prefix: q.Get("prefix"), Delimiter: q.Get("delimiter"), StartAfter: q.Get("start-after"),
		ContinuationToken: q.Get("continuation-token"), EncodingType: q.Get("encoding-type"), MaxKeys: n,
	}
	after := res.StartAfter
	if res.ContinuationToken != "" {
		b, err := base64.URLEncoding.DecodeString(res.ContinuationToken)
		if err != nil {
			return &apiError{status: http.StatusBadRequest, code: "InvalidArgument", message: "The continuation token provided is incorrect"}
		}
		after = string(b)
	}
	shown := func(s string) string { return s }
	if res.EncodingType == "url" {
		shown = func(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "%2F", "/") }
		res.Prefix, res.StartAfter, res.Delimiter = shown(res.Prefix), shown(res.StartAfter), shown(res.Delimiter)
	}
	s.mu.Lock() // a listing may sort the keys
	b, e := s.bucket(name)
	if e != nil {
		s.mu.Unlock()
		return e
	}
	var p page
	if n > 0 {
		p = b.list(q.Get("prefix"), q.Get("delimiter"), after, n)
	}
	s.mu.Unlock()
	for _, v := range p.contents {
		res.Contents = append(res.Contents, listObject{shown(v.key), v.modified.UTC().Format(millis), `"` + v.etag + `"`, v.size, "STANDARD"})
	}
	for _, prefix := range p.prefixes {
		res.CommonPrefixes = append(res.CommonPrefixes, listPrefix{shown(prefix)})
	}
	res.KeyCount = len(p.contents) + len(p.prefixes)
	if p.last != "" {
		res.IsTruncated, res.NextContinuationToken = true, base64.URLEncoding.EncodeToString([]byte(p.last))
	}
	writeXML(w, res)
	return nil
}

func (s *store) listBuckets(w http.ResponseWriter) {
	type entry struct{ Name, CreationDate string }
	res := struct {
		XMLName xml.Name `xml:"ListAllMyBucketsResult"`
		Xmlns   string   `xml:"xmlns,attr"`
		Owner   struct{ ID string }
		Buckets struct{ Bucket []entry }
	}{Xmlns: xmlns}
	res.Owner.ID = AccountID
	for _, b := range s.buckets {
		res.Buckets.Bucket = append(res.Buckets.Bucket, entry{b.name, b.created.UTC().Format(time.RFC3339)})
	}
	slices.SortFunc(res.Buckets.Bucket, func(a, b entry) int { return strings.Compare(a.Name, b.Name) })
	writeXML(w, res)
}

func writeXML(w http.ResponseWriter, v any) {
	b, err := xml.Marshal(v)
	if err != nil {
		panic(err) // only strings and numbers are given to it
	}
	w.Header().Set("Content-Type", "application/xml")
	_, _ = io.WriteString(w, xml.Header+string(b))
}

func writeS3Error(w http.ResponseWriter, r *http.Request, e *apiError) {
	h := w.Header()
	if r.Method == http.MethodHead || e.status == http.StatusNotModified {
		w.WriteHeader(e.status)
		return
	}
	name, key := address(r)
	body, err := xml.Marshal(struct {
		XMLName    xml.Name `xml:"Error"`
		Code       string
		Message    string
		BucketName string `xml:",omitempty"`
		Key        string `xml:",omitempty"`
		RequestID  string `xml:"RequestId"`
		HostID     string `xml:"HostId"`
	}{Code: e.code, Message: e.message, BucketName: name, Key: key, RequestID: h.Get("X-Amz-Request-Id"), HostID: h.Get("X-Amz-Id-2")})
	if err != nil {
		panic(err) // only strings are given to it
	}
	h.Set("Content-Type", "application/xml")
	w.WriteHeader(e.status)
	_, _ = io.WriteString(w, xml.Header+string(body))
}
