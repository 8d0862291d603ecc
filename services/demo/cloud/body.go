package cloud

import (
	"bufio"
	"crypto/md5"  //nolint:gosec // checksums of the protocol
	"crypto/sha1" //nolint:gosec // checksums of the protocol
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// maxPut bounds a body that is put through HTTP.
const maxPut = 1 << 30

// checksums are the algorithms that are verified; others are let through.
// CRC-64/NVME's polynomial is given in reversed form.
var checksums = map[string]func() hash.Hash{
	"crc32":     func() hash.Hash { return crc32.NewIEEE() },
	"crc32c":    func() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) },
	"crc64nvme": func() hash.Hash { return crc64.New(crc64.MakeTable(0x9a6c9329ac4bc9b5)) },
	"sha1":      sha1.New,
	"sha256":    sha256.New,
}

// readBody reads what a PutObject uploads: plain, or in aws-chunked framing with
// a trailer. It verifies the length and every checksum that it knows.
// Source: Amazon S3 API Reference, "Signature calculations for trailing chunks".
func readBody(r *http.Request) ([]byte, *apiError) {
	payload := r.Header.Get("X-Amz-Content-Sha256")
	given := r.Header
	var body []byte
	var err error
	if strings.HasPrefix(payload, "STREAMING-") {
		var trailer http.Header
		body, trailer, err = readChunks(r.Body)
		if want := r.Header.Get("X-Amz-Decoded-Content-Length"); err == nil && want != strconv.Itoa(len(body)) {
			err = io.ErrUnexpectedEOF
		}
		for _, name := range r.Header.Values("X-Amz-Trailer") {
			if err == nil && trailer.Get(name) == "" {
				return nil, &apiError{status: http.StatusBadRequest, code: "MalformedTrailerError", message: "The request contained trailing data that was not well-formed or did not conform to our published schema."}
			}
		}
		for k, v := range r.Header {
			if trailer != nil && trailer[k] == nil {
				trailer[k] = v
			}
		}
		given = trailer
	} else {
		body, err = io.ReadAll(io.LimitReader(r.Body, maxPut+1))
	}
	if err != nil {
		return nil, &apiError{status: http.StatusBadRequest, code: "IncompleteBody", message: "You did not provide the number of bytes specified by the Content-Length HTTP header."}
	}
	if len(body) > maxPut {
		return nil, &apiError{status: http.StatusBadRequest, code: "EntityTooLarge", message: "Your proposed upload exceeds the maximum allowed object size."}
	}
	return body, verify(body, given, payload)
}

func verify(body []byte, given http.Header, payload string) *apiError {
	if len(payload) == 64 {
		if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != payload {
			return &apiError{status: http.StatusBadRequest, code: "XAmzContentSHA256Mismatch", message: "The provided 'x-amz-content-sha256' header does not match what was computed."}
		}
	}
	if want := given.Get("Content-Md5"); want != "" {
		if sum := md5.Sum(body); base64.StdEncoding.EncodeToString(sum[:]) != want { //nolint:gosec // the protocol's checksum
			return &apiError{status: http.StatusBadRequest, code: "BadDigest", message: "The Content-MD5 you specified did not match what we received."}
		}
	}
	for name, algorithm := range checksums {
		want := given.Get("X-Amz-Checksum-" + name)
		if want == "" {
			continue
		}
		h := algorithm()
		_, _ = h.Write(body) // never fails
		if base64.StdEncoding.EncodeToString(h.Sum(nil)) != want {
			return &apiError{status: http.StatusBadRequest, code: "BadDigest", message: "The " + strings.ToUpper(name) + " you specified did not match the calculated checksum."}
		}
	}
	return nil
}

// readChunks takes aws-chunked framing off:
//
//	<hex size>[;chunk-signature=…]\r\n <bytes> \r\n … 0\r\n <trailer lines> \r\n
func readChunks(r io.Reader) (body []byte, trailer http.Header, err error) {
	br := bufio.NewReader(r)
	line := func() (string, error) {
		s, err := br.ReadString('\n')
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return strings.TrimRight(s, "\r\n"), err
	}
	for {
		head, err := line()
		if err != nil {
			return nil, nil, err
		}
		digits, _, _ := strings.Cut(head, ";")
		n, err := strconv.ParseUint(digits, 16, 31)
		if err != nil {
			return nil, nil, err
		}
		if n == 0 {
			break
		}
		if len(body)+int(n) > maxPut {
			return make([]byte, maxPut+1), nil, nil
		}
		at := len(body)
		body = append(body, make([]byte, n)...)
		if _, err := io.ReadFull(br, body[at:]); err != nil {
			return nil, nil, err
		}
		if end, err := line(); err != nil || end != "" {
			return nil, nil, io.ErrUnexpectedEOF
		}
	}
	trailer = http.Header{}
	for err == nil { // to the empty line, or the end of the body
		var s string
		s, err = br.ReadString('\n')
		name, value, found := strings.Cut(strings.TrimRight(s, "\r\n"), ":")
		if !found {
			break
		}
		trailer.Set(name, strings.TrimSpace(value))
	}
	return body, trailer, nil
}
