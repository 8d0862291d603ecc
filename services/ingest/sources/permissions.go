package sources

// The calls that are not named beside the code that makes them: those of fetch, on
// behalf of sources that announce objects, and those of probes.
const (
	callObject     = "s3:GetObject"
	callVersion    = "s3:GetObjectVersion"
	callDecrypt    = "kms:Decrypt"
	callAttributes = "sqs:GetQueueAttributes"
)

// Permissions are the actions that a source of each kind needs of AWS, as IAM names
// them. The policies of deploy/aws are held to it. Source: features DEV-39 to DEV-44;
// Service Authorization Reference.
var Permissions = map[string][]string{
	// Reading needs all but sqs:GetQueueAttributes, by which `penstock doctor` looks
	// at the queue, and s3:ListBucket, without which a key that is not there cannot be
	// told from one that may not be read.
	"sqs":                {callReceive, callDelete, callChange, callAttributes, callObject, callVersion, callList, callDecrypt},
	"s3":                 {callList, callObject, callDecrypt},
	"cloudtrail_api":     {trailCall},
	"cloudwatch_logs":    {callLogGroups.api, callLogStreams.api, callLogEvents.api},
	"cloudwatch_metrics": {callListMetrics.api, callMetricData.api},
	"guardduty":          {callDetectors.api, callListFindings.api, callGetFindings.api},
}
