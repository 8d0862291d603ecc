package sinks

// The calls of AWS that destinations make, as IAM names them.
const (
	callPutObject  = "s3:PutObject"
	callAbort      = "s3:AbortMultipartUpload"
	callDataKey    = "kms:GenerateDataKey"
	callDecrypt    = "kms:Decrypt"
	callSend       = "sqs:SendMessage"
	callAttributes = "sqs:GetQueueAttributes"
)

// Permissions are the actions that a destination of each kind needs of AWS, as IAM
// names them. The policies of deploy/aws are held to it. Source: Service Authorization
// Reference; Amazon S3 User Guide, multipart upload and permissions.
var Permissions = map[string][]string{
	"s3": {callPutObject, callAbort, callDataKey, callDecrypt},
	// Sending needs only sqs:SendMessage and, where the queue has a key of its own, those
	// of KMS. By sqs:GetQueueAttributes `penstock doctor` looks at the queue; those of S3
	// are for what is too large.
	"sqs": {callSend, callAttributes, callPutObject, callAbort, callDataKey, callDecrypt},
}
