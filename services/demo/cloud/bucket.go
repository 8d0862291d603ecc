package cloud

import (
	"crypto/md5" //nolint:gosec // the ETag of S3
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Object is what a key holds. Either Body or Write gives the content.
type Object struct {
	// Body is the content. It must not change any more.
	Body []byte
	// Write makes a content that is too large to keep: Size bytes, the same on
	// each call, in any goroutine. It returns the writer's error at once.
	Write func(io.Writer) error
	// Size of what Write writes, in bytes. Not used with Body.
	Size int64
	// ContentType and ContentEncoding are headers. Both may be empty.
	ContentType, ContentEncoding string
	// Metadata become x-amz-meta-* headers.
	Metadata map[string]string
	// Denied answers AccessDenied to every read.
	Denied bool
	// KMSKey is the ARN of the key it is encrypted with: who reads it needs
	// kms:Decrypt. Empty: none.
	KMSKey string
	// Encryption, BucketKey, StorageClass and ACL are what a put asked for. All may be
	// empty.
	Encryption, StorageClass, ACL string
	BucketKey                     bool
	// Modified is when it was put. Zero: now. For objects from before the test.
	Modified time.Time
	// Quiet sends no notice of this put.
	Quiet bool
}

// BucketOptions configures a bucket.
type BucketOptions struct {
	// Versioned keeps each put as a version of its own, with an id.
	Versioned bool
}

// Stored tells what a put made.
type Stored struct {
	// ETag without quotes. VersionID is empty in an unversioned bucket.
	ETag, VersionID string
	Size            int64
	// Sequencer orders the events of one key.
	Sequencer string
}

// store holds the buckets.
type store struct {
	cloud   *Cloud
	mu      sync.RWMutex
	buckets map[string]*bucket
	changes uint64 // puts and removals: sequencer and version ids
}

type bucket struct {
	name      string
	created   time.Time
	versioned bool
	objects   map[string][]*version // oldest first; never empty
	keys      []string
	sorted    bool // keys are in order
	rules     []*rule
	uploads   map[string]*upload // by id, of uploads that are under way
}

// version is one content of a key. It does not change once stored.
type version struct {
	Object
	key      string
	id       string // empty in an unversioned bucket
	etag     string
	crc32    string // base64; empty when not known
	size     int64
	modified time.Time
	sequence string // of the event of its put
	marker   bool   // a delete marker
	parts    int    // of which it was uploaded, 0 for one put whole
}

var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

func (s *store) init(c *Cloud) {
	s.cloud = c
	s.buckets = map[string]*bucket{}
}

func (s *store) create(name string, o BucketOptions) *apiError {
	if !bucketName.MatchString(name) {
		return &apiError{status: http.StatusBadRequest, code: "InvalidBucketName", message: "The specified bucket is not valid."}
	}
	if s.buckets[name] != nil {
		return &apiError{status: http.StatusConflict, code: "BucketAlreadyOwnedByYou", message: "Your previous request to create the named bucket succeeded and you already own it."}
	}
	s.buckets[name] = &bucket{
		name: name, created: time.Now(), versioned: o.Versioned, objects: map[string][]*version{}, uploads: map[string]*upload{},
	}
	return nil
}

func (s *store) bucket(name string) (*bucket, *apiError) {
	if b := s.buckets[name]; b != nil {
		return b, nil
	}
	return nil, &apiError{status: http.StatusNotFound, code: "NoSuchBucket", message: "The specified bucket does not exist"}
}

// latest returns the current version of a key, which may be a delete marker.
func (b *bucket) latest(key string) *version {
	if all := b.objects[key]; len(all) > 0 {
		return all[len(all)-1]
	}
	return nil
}

// find returns a version that can be read: the latest when id is empty.
func (b *bucket) find(key, id string) (*version, *apiError) {
	v := b.latest(key)
	if id != "" && id != "null" {
		v = nil
		for _, old := range b.objects[key] {
			if old.id == id {
				v = old
			}
		}
		if v == nil {
			return nil, &apiError{status: http.StatusNotFound, code: "NoSuchVersion", message: "The specified version does not exist."}
		}
		if v.marker {
			return nil, &apiError{status: http.StatusMethodNotAllowed, code: "MethodNotAllowed", message: "The specified method is not allowed against this resource."}
		}
	}
	switch {
	case v == nil || v.marker:
		return nil, &apiError{status: http.StatusNotFound, code: "NoSuchKey", message: "The specified key does not exist."}
	case v.Denied:
		return nil, &apiError{status: http.StatusForbidden, code: "AccessDenied", message: "Access Denied"}
	}
	return v, nil
}

// newVersion computes what is stored with an object. It holds no lock: the
// checksums of a large body take a while.
func newVersion(key string, o Object) *version {
	v := &version{Object: o, key: key, size: o.Size, modified: o.Modified.Truncate(time.Second)}
	if o.Modified.IsZero() {
		v.modified = time.Now().Truncate(time.Second)
	}
	if o.Write != nil {
		sum := md5.Sum(fmt.Appendf(nil, "%s\x00%d", key, o.Size)) //nolint:gosec // an ETag
		v.etag = hex.EncodeToString(sum[:]) + "-1"
		return v
	}
	v.size, v.etag = int64(len(o.Body)), md5Hex(o.Body)
	v.crc32 = base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(o.Body)))
	return v
}

// add makes v the latest version of its key. The caller holds the lock.
func (s *store) add(b *bucket, v *version) Stored {
	s.changes++
	before := b.objects[v.key]
	if b.versioned {
		v.id = fmt.Sprintf("penstock.%016x", s.changes)
	} else {
		before = slices.DeleteFunc(before, func(old *version) bool { return old.id == "" })
	}
	if _, known := b.objects[v.key]; !known {
		b.sorted = len(b.keys) == 0 || b.sorted && b.keys[len(b.keys)-1] < v.key
		b.keys = append(b.keys, v.key)
	}
	v.sequence = s.sequencer()
	b.objects[v.key] = append(before, v)
	return v.stored()
}

// how the version came to be, as notices say it.
func (v *version) how() string {
	if v.parts > 0 {
		return "ObjectCreated:CompleteMultipartUpload"
	}
	return "ObjectCreated:Put"
}

func (v *version) stored() Stored {
	return Stored{ETag: v.etag, VersionID: v.id, Size: v.size, Sequencer: v.sequence}
}

func (s *store) sequencer() string { return fmt.Sprintf("%018X", 0x55AED6DC00000000+s.changes) }

// remove deletes a key, or one version of it. It reports whether there was one.
func (s *store) remove(b *bucket, key, id string) (marker *version, there bool) {
	all, there := b.objects[key]
	switch {
	case b.versioned && id == "":
		marker = &version{key: key, marker: true, modified: time.Now()}
		s.add(b, marker)
		return marker, there
	case !there:
		return nil, false
	case id == "":
		all = nil
	default:
		all = slices.DeleteFunc(all, func(v *version) bool { return v.id == id || id == "null" && v.id == "" })
	}
	s.changes++
	if b.objects[key] = all; len(all) == 0 {
		delete(b.objects, key)
		b.keys = slices.DeleteFunc(b.keys, func(k string) bool { return k == key })
	}
	return nil, true
}

// page is one page of a listing.
type page struct {
	contents []*version
	prefixes []string
	last     string // what to go on after; empty when nothing follows
}

// list returns up to n keys and common prefixes after a key.
func (b *bucket) list(prefix, delimiter, after string, n int) page {
	if !b.sorted {
		slices.Sort(b.keys)
		b.sorted = true
	}
	var p page
	i, _ := slices.BinarySearch(b.keys, max(prefix, after))
	last := ""
	for ; i < len(b.keys) && strings.HasPrefix(b.keys[i], prefix); i++ {
		key := b.keys[i]
		if key <= after || delimiter != "" && strings.HasSuffix(after, delimiter) && strings.HasPrefix(key, after) && len(after) > len(prefix) {
			continue // listed, or below a common prefix that was listed
		}
		v := b.latest(key)
		if v.marker {
			continue
		}
		item := key
		if at := strings.Index(key[len(prefix):], delimiter); delimiter != "" && at >= 0 {
			item = key[:len(prefix)+at+len(delimiter)]
			if len(p.prefixes) > 0 && p.prefixes[len(p.prefixes)-1] == item {
				continue
			}
		}
		if len(p.contents)+len(p.prefixes) == n {
			p.last = last
			return p
		}
		if last = item; item == key {
			p.contents = append(p.contents, v)
		} else {
			p.prefixes = append(p.prefixes, item)
		}
	}
	return p
}

// CreateBucket makes a bucket. One that exists is left as it is.
// Fails with demo.refused when the name is illegal.
func (c *Cloud) CreateBucket(name string, o BucketOptions) error {
	c.s3.mu.Lock()
	defer c.s3.mu.Unlock()
	if c.s3.buckets[name] != nil {
		return nil
	}
	if e := c.s3.create(name, o); e != nil {
		return errRefused.New(e, "create bucket %s", name)
	}
	return nil
}

// Put stores an object and sends its notices. Fails with demo.refused.
func (c *Cloud) Put(bucket, key string, o Object) (Stored, error) {
	defer c.changed.fire()
	stored, e := c.s3.put(bucket, newVersion(key, o), nil)
	if e != nil {
		return Stored{}, errRefused.New(e, "put s3://%s/%s", bucket, key)
	}
	return stored, nil
}

// put adds a version when check, which may be nil, allows it, and sends notices.
func (s *store) put(name string, v *version, check func(latest *version) *apiError) (Stored, *apiError) {
	if v.key == "" || len(v.key) > 1024 {
		return Stored{}, &apiError{status: http.StatusBadRequest, code: "KeyTooLongError", message: "Your key is too long"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b, e := s.bucket(name)
	if e != nil {
		return Stored{}, e
	}
	if check != nil {
		latest := b.latest(v.key)
		if latest != nil && latest.marker {
			latest = nil
		}
		if e := check(latest); e != nil {
			return Stored{}, e
		}
	}
	stored := s.add(b, v)
	if !v.Quiet {
		s.announce(b, Event{
			Name: v.how(), Bucket: name, Key: v.key, Size: v.size, ETag: v.etag, VersionID: v.id,
			Sequencer: stored.Sequencer, Region: s.cloud.opts.Region, Time: time.Now(),
		})
	}
	return stored, nil
}

// Delete removes a key, as DeleteObject does, and sends its notices. A key that
// is not there is no error. Fails with demo.refused.
func (c *Cloud) Delete(bucket, key string) error {
	defer c.changed.fire()
	if _, e := c.s3.delete(bucket, key, ""); e != nil {
		return errRefused.New(e, "delete s3://%s/%s", bucket, key)
	}
	return nil
}

func (s *store) delete(name, key, id string) (marker *version, _ *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, e := s.bucket(name)
	if e != nil {
		return nil, e
	}
	marker, there := s.remove(b, key, id)
	if there {
		ev := Event{Name: "ObjectRemoved:Delete", Bucket: name, Key: key, VersionID: id, Sequencer: s.sequencer(), Region: s.cloud.opts.Region, Time: time.Now()}
		if marker != nil {
			ev.Name, ev.VersionID = "ObjectRemoved:DeleteMarkerCreated", marker.id
		}
		s.announce(b, ev)
	}
	return marker, nil
}

// Stat tells what the last put of a key made, false when the key is not there.
func (c *Cloud) Stat(bucket, key string) (Stored, bool) {
	c.s3.mu.RLock()
	defer c.s3.mu.RUnlock()
	if b := c.s3.buckets[bucket]; b != nil {
		if v := b.latest(key); v != nil && !v.marker {
			return v.stored(), true
		}
	}
	return Stored{}, false
}

// Objects returns how many keys a bucket holds.
func (c *Cloud) Objects(bucket string) int {
	c.s3.mu.RLock()
	defer c.s3.mu.RUnlock()
	n := 0
	if b := c.s3.buckets[bucket]; b != nil {
		for key := range b.objects {
			if !b.latest(key).marker {
				n++
			}
		}
	}
	return n
}

// Keys returns the keys of a bucket, in order.
func (c *Cloud) Keys(bucket string) []string {
	c.s3.mu.RLock()
	defer c.s3.mu.RUnlock()
	var keys []string
	if b := c.s3.buckets[bucket]; b != nil {
		for key := range b.objects {
			if !b.latest(key).marker {
				keys = append(keys, key)
			}
		}
	}
	slices.Sort(keys)
	return keys
}

// Get returns the latest version of a key, false when the key is not there.
func (c *Cloud) Get(bucket, key string) (Object, bool) {
	c.s3.mu.RLock()
	defer c.s3.mu.RUnlock()
	if b := c.s3.buckets[bucket]; b != nil {
		if v := b.latest(key); v != nil && !v.marker {
			return v.Object, true
		}
	}
	return Object{}, false
}

// Uploads returns the ids of the multipart uploads to a bucket that are neither
// completed nor aborted.
func (c *Cloud) Uploads(bucket string) []string {
	c.s3.mu.RLock()
	defer c.s3.mu.RUnlock()
	if b := c.s3.buckets[bucket]; b != nil {
		return slices.Sorted(maps.Keys(b.uploads))
	}
	return nil
}

// AbortUploads aborts all multipart uploads to a bucket, as a lifecycle rule does.
func (c *Cloud) AbortUploads(bucket string) {
	c.s3.mu.Lock()
	defer c.s3.mu.Unlock()
	if b := c.s3.buckets[bucket]; b != nil {
		clear(b.uploads)
	}
}
