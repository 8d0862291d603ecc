package main

import (
	"bytes"
	"errors"
)

// This file is what the floor knows of formats. No real feed would allow to rely on so
// little.

var errNoID = errors.New("a record has nothing that identifies it")

// splitTrail is a [bufio.SplitFunc] for CloudTrail objects: it splits at the places where
// generated records meet.
func splitTrail(data []byte, atEOF bool) (advance int, record []byte, err error) {
	const head, meet, tail = `{"Records":[`, `},{"eventVersion"`, "]}"
	if len(data) < len(head) && !atEOF {
		return 0, nil, nil
	}
	start := 0
	if bytes.HasPrefix(data, []byte(head)) {
		start = len(head)
	}
	if end := bytes.Index(data[start:], []byte(meet)); end >= 0 {
		end += start + 1
		return end + 1, data[start:end], nil
	}
	if !atEOF || len(data) == 0 {
		return 0, nil, nil
	}
	return len(data), bytes.TrimSuffix(data[start:], []byte(tail)), nil
}

// contains tells whether a text is in a record.
func contains(text string) func(record []byte) bool {
	return func(record []byte) bool { return bytes.Contains(record, []byte(text)) }
}

// field tells whether the n-th field of a row, from 1, holds something.
func field(n int, separator byte) func(record []byte) bool {
	return func(record []byte) bool {
		for range n - 1 {
			k := bytes.IndexByte(record, separator)
			if k < 0 {
				return false
			}
			record = record[k+1:]
		}
		return len(record) > 0 && record[0] != separator
	}
}

// The columns of the sets, as penstock names them; a number is marked by #.
const (
	vpcColumns = "version# account-id interface-id srcaddr dstaddr srcport# dstport# protocol# packets# bytes# start# end# action log-status"

	cloudFrontColumns = "date time x-edge-location sc-bytes# c-ip cs-method cs(Host) cs-uri-stem sc-status cs(Referer) cs(User-Agent) cs-uri-query " +
		"cs(Cookie) x-edge-result-type x-edge-request-id x-host-header cs-protocol cs-bytes# time-taken# x-forwarded-for ssl-protocol ssl-cipher " +
		"x-edge-response-result-type cs-protocol-version fle-status fle-encrypted-fields c-port# time-to-first-byte# x-edge-detailed-result-type " +
		"sc-content-type sc-content-len# sc-range-start sc-range-end"

	umbrellaColumns = "timestamp most_granular_identity identities internal_ip external_ip action query_type response_code domain categories " +
		"most_granular_identity_type identity_types blocked_categories"
)
