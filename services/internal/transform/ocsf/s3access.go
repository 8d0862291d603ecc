package ocsf

import "strings"

func init() {
	define(mapping{
		formats: []string{"s3access"}, product: "Amazon S3", profiles: []string{"cloud"},
		fields: []field{
			{to: "api.operation", from: "operation"},
			{to: "api.request.uid", from: "request_id"},
			{to: "api.response.error", from: "error_code"},
			{to: "http_request.referrer", from: "referer"},
			{to: "http_request.user_agent", from: "user_agent"},
			{to: "http_response.code", from: "http_status", as: integer},
			{to: "metadata.original_time", from: "time"},
			{to: "src_endpoint.ip", from: "remote_ip", as: address},
			{to: "raw_data", from: "raw"},
			{from: "bucket", as: looking},
			{from: "key", as: looking},
			{from: "bucket_owner", as: looking},
			{from: "requester", as: taking},
			{from: "request_uri", as: taking},
			{from: "http_status", as: looking},
		},
		sets: []string{
			"actor.user.name", "actor.user.uid", "api.service.name", "http_request.http_method", "http_request.url.url_string", "http_request.version",
			"metadata.product.feature.name", "resources", "src_endpoint.svc_name",
		},
		finish: finishAccess,
	})
}

// finishAccess makes API Activity, as CloudTrail's data events of S3 are. S3 writes no
// requester for those that are not signed in; they are called anonymous here.
//
// Source: Amazon S3 User Guide, server access log format.
func finishAccess(r *record) {
	r.setText("metadata.product.feature.name", "Server access logs")
	r.setText("api.service.name", "s3.amazonaws.com")
	operation := r.text("operation")
	r.as(apiActivity, accessOf(operation))
	r.activityName = operation
	if who := r.text("requester"); who == "" {
		r.setText("actor.user.name", "anonymous")
	} else {
		r.setText("actor.user.uid", who)
		if !r.has("src_endpoint.ip") { // what S3 does of itself
			r.setText("src_endpoint.svc_name", who)
		}
	}
	r.setRequest("request_uri")
	if bucket := r.text("bucket"); bucket != "" {
		from := len(r.buf)
		r.buf = append(r.buf, `[{"name":`...)
		r.buf = appendText(r.buf, bucket)
		if owner := r.text("bucket_owner"); owner != "" {
			r.buf = appendText(append(r.buf, `,"owner":{"uid":`...), owner)
			r.buf = append(r.buf, '}')
		}
		r.buf = append(r.buf, `,"type":"AWS::S3::Bucket"}`...)
		if key := r.text("key"); key != "" {
			r.buf = appendText(append(r.buf, `,{"name":`...), key)
			r.buf = append(r.buf, `,"type":"AWS::S3::Object"}`...)
		}
		r.buf = append(r.buf, ']')
		r.set("resources", r.buf[from:])
	}
	r.setAnswer(r.text("http_status"))
}

// accessOf returns the activity of an operation, e.g. REST.GET.OBJECT.
func accessOf(operation string) int {
	words := strings.Split(operation, ".")
	if len(words) < 2 {
		return other
	}
	switch words[1] {
	case "PUT", "POST", "COPY", "CREATE":
		return 1
	case "GET", "HEAD", "OPTIONS", "SELECT":
		return 2
	case "DELETE", "EXPIRE":
		return 4
	}
	return other
}
