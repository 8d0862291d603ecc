package cloud

import (
	"crypto/md5" //nolint:gosec // the ETag of S3
	"encoding/hex"
	"encoding/xml"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	minPart  = 5 << 20 // bytes of every part but the last
	maxParts = 10_000
)

// upload is a multipart upload that is under way.
type upload struct {
	key   string
	about Object
	parts map[int]part
}

type part struct {
	body []byte
	etag string
}

// multipart names the operation of a request about an upload.
func multipart(method string, q url.Values) string {
	switch {
	case q.Has("uploads") && method == http.MethodPost:
		return "CreateMultipartUpload"
	case !q.Has("uploadId"):
		return "Unknown"
	case method == http.MethodPut && q.Has("partNumber"):
		return "UploadPart"
	case method == http.MethodPost:
		return "CompleteMultipartUpload"
	case method == http.MethodDelete:
		return "AbortMultipartUpload"
	}
	return "Unknown"
}

// mayEncrypt asks whether the caller may use the key that a put names. Parts of an
// upload are also decrypted. Source: Amazon S3 User Guide, multipart upload and
// permissions.
func (c *Cloud) mayEncrypt(r *http.Request, who caller, op string) *apiError {
	if r.Header.Get("X-Amz-Server-Side-Encryption") != "aws:kms" {
		return nil
	}
	key := r.Header.Get("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id")
	if key == "" {
		return nil // the key that AWS manages
	}
	via := "s3." + c.opts.Region + ".amazonaws.com"
	e := c.authorize(who, "kms:GenerateDataKey", key, "kms:ViaService", via)
	if e == nil && op == "CreateMultipartUpload" {
		e = c.authorize(who, "kms:Decrypt", key, "kms:ViaService", via)
	}
	return e
}

func noSuchUpload() *apiError {
	return &apiError{
		status: http.StatusNotFound, code: "NoSuchUpload",
		message: "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed.",
	}
}

// upload returns what a request is about. The caller holds the lock.
func (s *store) upload(r *http.Request, name, key string) (*bucket, *upload, *apiError) {
	b, e := s.bucket(name)
	if e != nil {
		return nil, nil, e
	}
	u := b.uploads[r.URL.Query().Get("uploadId")]
	if u == nil || u.key != key {
		return nil, nil, noSuchUpload()
	}
	return b, u, nil
}

func (s *store) createUpload(w http.ResponseWriter, r *http.Request, name, key string) *apiError {
	if len(key) > 1024 {
		return &apiError{status: http.StatusBadRequest, code: "KeyTooLongError", message: "Your key is too long"}
	}
	about, e := described(r.Header)
	if e != nil {
		return e
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b, e := s.bucket(name)
	if e != nil {
		return e
	}
	id := strings.ReplaceAll(uuid(), "-", "")
	b.uploads[id] = &upload{key: key, about: about, parts: map[int]part{}}
	setEncryption(w.Header(), &about)
	writeXML(w, struct {
		XMLName  xml.Name `xml:"InitiateMultipartUploadResult"`
		Xmlns    string   `xml:"xmlns,attr"`
		Bucket   string
		Key      string
		UploadID string `xml:"UploadId"`
	}{Xmlns: xmlns, Bucket: name, Key: key, UploadID: id})
	return nil
}

func (s *store) uploadPart(w http.ResponseWriter, r *http.Request, name, key string) *apiError {
	n, err := strconv.Atoi(r.URL.Query().Get("partNumber"))
	if err != nil || n < 1 || n > maxParts {
		return &apiError{status: http.StatusBadRequest, code: "InvalidArgument", message: "Part number must be an integer between 1 and 10000, inclusive"}
	}
	body, e := readBody(r)
	if e != nil {
		return e
	}
	etag := md5Hex(body)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, u, e := s.upload(r, name, key)
	if e != nil {
		return e
	}
	u.parts[n] = part{body, etag}
	w.Header().Set("Etag", `"`+etag+`"`)
	if sum := r.Header.Get("X-Amz-Checksum-Sha256"); sum != "" {
		w.Header().Set("X-Amz-Checksum-Sha256", sum)
	}
	return nil
}

type completed struct {
	Part []struct {
		PartNumber int
		ETag       string
	}
}

func (s *store) completeUpload(w http.ResponseWriter, r *http.Request, name, key string) *apiError {
	var asked completed
	if err := xml.NewDecoder(io.LimitReader(r.Body, 8<<20)).Decode(&asked); err != nil || len(asked.Part) == 0 {
		return &apiError{status: http.StatusBadRequest, code: "MalformedXML", message: "The XML you provided was not well-formed or did not validate against our published schema"}
	}
	s.mu.RLock()
	_, u, e := s.upload(r, name, key)
	var o Object
	var etag string
	if e == nil {
		o, etag, e = u.assemble(asked)
	}
	s.mu.RUnlock()
	if e != nil {
		return e
	}
	v := newVersion(key, o)
	v.etag, v.crc32, v.parts = etag, "", len(asked.Part)
	if _, e := s.put(name, v, writable(r.Header)); e != nil {
		return e
	}
	s.mu.Lock()
	if b, _, e := s.upload(r, name, key); e == nil {
		delete(b.uploads, r.URL.Query().Get("uploadId"))
	}
	s.mu.Unlock()
	if v.id != "" {
		w.Header().Set("X-Amz-Version-Id", v.id)
	}
	setEncryption(w.Header(), &v.Object)
	writeXML(w, struct {
		XMLName  xml.Name `xml:"CompleteMultipartUploadResult"`
		Xmlns    string   `xml:"xmlns,attr"`
		Location string
		Bucket   string
		Key      string
		ETag     string
	}{Xmlns: xmlns, Location: s.cloud.url + "/" + name + "/" + key, Bucket: name, Key: key, ETag: `"` + etag + `"`})
	return nil
}

// assemble joins the parts that are asked for. Its ETag is that of S3: the MD5 of
// their MD5s, and their number.
func (u *upload) assemble(asked completed) (Object, string, *apiError) {
	sums := md5.New() //nolint:gosec // the ETag of S3
	o, size, last := u.about, 0, 0
	for i, p := range asked.Part {
		have, ok := u.parts[p.PartNumber]
		switch {
		case p.PartNumber <= last:
			return o, "", &apiError{status: http.StatusBadRequest, code: "InvalidPartOrder", message: "The list of parts was not in ascending order. Parts must be ordered by part number."}
		case !ok || strings.Trim(p.ETag, `"`) != have.etag:
			return o, "", &apiError{status: http.StatusBadRequest, code: "InvalidPart", message: "One or more of the specified parts could not be found. The part may not have been uploaded, or the specified entity tag may not match the part's entity tag."}
		case i+1 < len(asked.Part) && len(have.body) < minPart:
			return o, "", &apiError{status: http.StatusBadRequest, code: "EntityTooSmall", message: "Your proposed upload is smaller than the minimum allowed size"}
		}
		sum, _ := hex.DecodeString(have.etag) // we made it
		_, _ = sums.Write(sum)
		size, last = size+len(have.body), p.PartNumber
	}
	o.Body = make([]byte, 0, size)
	for _, p := range asked.Part {
		o.Body = append(o.Body, u.parts[p.PartNumber].body...)
	}
	o.Modified = time.Time{}
	return o, hex.EncodeToString(sums.Sum(nil)) + "-" + strconv.Itoa(len(asked.Part)), nil
}

func (s *store) abortUpload(w http.ResponseWriter, r *http.Request, name, key string) *apiError {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, _, e := s.upload(r, name, key)
	if e != nil {
		return e
	}
	delete(b.uploads, r.URL.Query().Get("uploadId"))
	w.WriteHeader(http.StatusNoContent)
	return nil
}
