package sources

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/probe"
)

// noSuchHandle is a receipt handle that no message has: a call with it is refused for
// the handle, or before that for want of the permission.
const noSuchHandle = "penstock-doctor"

// Probe implements [probe.Prober]. A message that it receives is given back at once;
// from a queue where that would be its last receive, it takes none.
func (c SQSConfig) Probe(ctx context.Context) []probe.Finding {
	at := queueAt(c)
	all, known := probe.Identity(ctx, at, "aws")
	if !known {
		return all
	}
	client, err := awsclient.SQS(ctx, at)
	if err != nil {
		return append(all, probe.Error("client", c.QueueURL, err))
	}
	q := queueProbe{cfg: c, client: client, arn: awsclient.QueueARN(c.QueueURL, at.Region)}
	all = append(all, q.findings(ctx)...)
	if q.gone || len(c.Buckets) == 0 || c.Body == BodyEvents {
		return all
	}
	return append(all, q.buckets(ctx)...)
}

type queueProbe struct {
	cfg    SQSConfig
	client *sqs.Client
	arn    string
	// gone: there is no such queue, or no way to it.
	gone bool
	// bucket, key and version of an object that the received message announces.
	found named
}

func (q *queueProbe) findings(ctx context.Context) []probe.Finding {
	var all []probe.Finding
	out, err := q.client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{
		QueueUrl: &q.cfg.QueueURL, AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameAll},
	})
	f := probe.Call(callAttributes, q.arn, err)
	if err != nil && f.Policy == nil {
		q.gone = true
		return []probe.Finding{f}
	}
	attributes := map[string]string{}
	if err != nil {
		f.Level, f.Fix = probe.Warn, "reading works without it; the queue itself cannot be looked at"
	} else {
		attributes = out.Attributes
		if arn := attributes["QueueArn"]; arn != "" {
			q.arn, f.Resource = arn, arn
		}
		f.Detail = fmt.Sprintf("%s messages wait, %s are in flight", attributes["ApproximateNumberOfMessages"], attributes["ApproximateNumberOfMessagesNotVisible"])
	}
	all = append(all, f)
	all = append(all, q.settings(attributes)...)

	if most := maxReceives(attributes); most == 1 || most == 2 {
		all = append(all, probe.Doubt(callReceive, q.arn, fmt.Sprintf("not tried: maxReceiveCount is %d, and trying counts", most),
			"raise maxReceiveCount to 5 or more: a message that comes again is nothing unusual, after a restart for instance"))
		return append(all, q.change(ctx, noSuchHandle), q.remove(ctx))
	}
	got, err := q.client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		QueueUrl: &q.cfg.QueueURL, MaxNumberOfMessages: 1, WaitTimeSeconds: 0, VisibilityTimeout: 30,
	})
	f = probe.Call(callReceive, q.arn, err)
	handle := noSuchHandle
	switch {
	case err != nil:
	case len(got.Messages) == 0:
		f.Detail = "no message waits"
	default:
		f.Detail = "took a message and gave it back"
		handle = aws.ToString(got.Messages[0].ReceiptHandle)
		for _, n := range readNotice([]byte(aws.ToString(got.Messages[0].Body))).records {
			if n.verdict == object && patterns(q.cfg.Buckets).match(n.bucket) {
				q.found = n
			}
		}
	}
	all = append(all, f)
	return append(all, q.change(ctx, handle), q.remove(ctx))
}

// change makes a message visible again, at once.
func (q *queueProbe) change(ctx context.Context, handle string) probe.Finding {
	// The message has to come back also when somebody has lost patience.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	_, err := q.client.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{QueueUrl: &q.cfg.QueueURL, ReceiptHandle: &handle})
	if handle == noSuchHandle && probe.Allowed(err, awsclient.Refused) {
		return probe.Good(callChange, q.arn, "")
	}
	f := probe.Call(callChange, q.arn, err)
	if err != nil && handle != noSuchHandle {
		f.Detail += "; the message that was taken comes back in 30 seconds"
	}
	return f
}

func (q *queueProbe) remove(ctx context.Context) probe.Finding {
	_, err := q.client.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &q.cfg.QueueURL, ReceiptHandle: aws.String(noSuchHandle)})
	if probe.Allowed(err, awsclient.Refused) {
		return probe.Good(callDelete, q.arn, "")
	}
	return probe.Call(callDelete, q.arn, err)
}

func maxReceives(attributes map[string]string) int {
	var redrive struct {
		Most json.RawMessage `json:"maxReceiveCount"`
	}
	if json.Unmarshal([]byte(attributes["RedrivePolicy"]), &redrive) != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.Trim(string(redrive.Most), `"`))
	return n
}

// settings judges how the queue is set up. Source: features DEV-53, DEV-57, DEV-58.
func (q *queueProbe) settings(attributes map[string]string) []probe.Finding {
	var all []probe.Finding
	senders := sendersOf(attributes["Policy"])
	if senders.anybody {
		all = append(all, probe.Doubt("queue policy", q.arn, `Principal "*" may send: anybody can put forged notifications into the queue`,
			`name the service, e.g. {"Service": "s3.amazonaws.com"}, with the conditions aws:SourceAccount and aws:SourceArn; see deploy/aws`))
	}
	if strings.HasSuffix(q.cfg.QueueURL, ".fifo") && len(q.cfg.Buckets) > 0 && q.cfg.Body != BodyEvents {
		const fix = "use a standard queue for the notifications of S3; EventBridge may use a FIFO queue"
		if senders.s3 {
			all = append(all, probe.Bad("queue type", q.arn, "S3 sends no notifications to a FIFO queue", fix))
		} else {
			all = append(all, probe.Doubt("queue type", q.arn, "S3 sends no notifications to a FIFO queue, only EventBridge does", fix))
		}
	}
	return all
}

type senders struct{ anybody, s3 bool }

// sendersOf finds out whom the policy of a queue lets send.
func sendersOf(policy string) (s senders) {
	var p struct {
		Statement json.RawMessage
	}
	if json.Unmarshal([]byte(policy), &p) != nil {
		return s
	}
	type statement struct {
		Effect    string
		Principal any
		Action    any
		Condition map[string]map[string]any
	}
	var list []statement
	if json.Unmarshal(p.Statement, &list) != nil {
		var one statement
		if json.Unmarshal(p.Statement, &one) != nil {
			return s
		}
		list = []statement{one}
	}
	for _, st := range list {
		if st.Effect != "Allow" || !sends(st.Action) {
			continue
		}
		who, _ := st.Principal.(map[string]any)
		for _, service := range texts(who["Service"]) {
			s.s3 = s.s3 || service == "s3.amazonaws.com"
		}
		all := false
		for _, p := range append(texts(st.Principal), texts(who["AWS"])...) {
			all = all || p == "*"
		}
		s.anybody = s.anybody || all && !narrowed(st.Condition)
	}
	return s
}

func texts(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		var list []string
		for _, one := range v {
			if s, ok := one.(string); ok {
				list = append(list, s)
			}
		}
		return list
	}
	return nil
}

func sends(action any) bool {
	for _, a := range texts(action) {
		if glob(strings.ToLower(a), "sqs:sendmessage") {
			return true
		}
	}
	return false
}

// narrowed tells whether a condition leaves out most of the world.
func narrowed(conditions map[string]map[string]any) bool {
	for operator, keys := range conditions {
		if strings.Contains(operator, "Not") || strings.HasSuffix(operator, "IfExists") {
			continue
		}
		for key, value := range keys {
			switch strings.ToLower(key) {
			case "aws:sourceaccount", "aws:sourceorgid", "aws:principalaccount", "aws:principalorgid", "aws:principalarn", "aws:sourcearn", "aws:sourcevpce":
				open := false
				for _, v := range texts(value) {
					open = open || strings.Trim(v, "*:") == "" || strings.HasSuffix(v, ":*:*:*")
				}
				if !open {
					return true
				}
			}
		}
	}
	return false
}

// buckets tries the buckets that are named, and the one that a message named.
func (q *queueProbe) buckets(ctx context.Context) []probe.Finding {
	at := q.cfg.ObjectAWS()
	var all []probe.Finding
	if at != queueAt(q.cfg) {
		var known bool
		if all, known = probe.Identity(ctx, at, "bucket_aws"); !known {
			return all
		}
	}
	client, err := awsclient.S3(ctx, at)
	if err != nil {
		return append(all, probe.Error("client", "the buckets", err))
	}
	tried := false
	for _, name := range q.cfg.Buckets {
		if strings.ContainsAny(name, "*?") {
			if q.found.bucket == "" || !glob(name, q.found.bucket) {
				continue
			}
			name = q.found.bucket
		}
		b := bucketProbe{client: client, bucket: name, prefixes: []string{""}}
		if name == q.found.bucket {
			b.key = q.found.key
		}
		all, tried = append(all, b.findings(ctx)...), true
	}
	if !tried {
		all = append(all, probe.Doubt(callObject, strings.Join(q.cfg.Buckets, ", "), "not tried: no bucket is named in full, and no notification waits",
			"look again when one does, or name a bucket"))
	}
	return all
}
