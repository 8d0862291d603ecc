# A queue that S3 notifies of new objects in a bucket of logs, its dead-letter queue, and a
# policy to read both with penstock.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "name" {
  description = "Name of the queue; the dead-letter queue and the policy begin with it."
  type        = string
  default     = "penstock-logs"
}

variable "bucket" {
  description = "Name of the bucket. It has to be there."
  type        = string
}

variable "key_prefix" {
  description = "Only keys that begin with it are announced. Empty for all."
  type        = string
  default     = ""
}

variable "kms_key_arn" {
  description = "ARN of the KMS key that encrypts the objects. Empty for none."
  type        = string
  default     = ""
}

variable "retention_seconds" {
  description = "How long messages wait, 5 to 14 days."
  type        = number
  default     = 1209600

  validation {
    condition     = var.retention_seconds >= 432000 && var.retention_seconds <= 1209600
    error_message = "Use 432000 (5 days) to 1209600 (14 days)."
  }
}

data "aws_caller_identity" "here" {}

data "aws_partition" "here" {}

locals {
  bucket_arn = "arn:${data.aws_partition.here.partition}:s3:::${var.bucket}"
}

resource "aws_sqs_queue" "dead_letters" {
  name                      = "${var.name}-dead"
  message_retention_seconds = 1209600
  sqs_managed_sse_enabled   = true
}

resource "aws_sqs_queue" "this" {
  name                       = var.name
  message_retention_seconds  = var.retention_seconds
  receive_wait_time_seconds  = 20
  visibility_timeout_seconds = 120
  sqs_managed_sse_enabled    = true

  # A message that comes again is nothing unusual: penstock gives messages back while it cannot
  # store them, and quarantines itself what it cannot read.
  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead_letters.arn
    maxReceiveCount     = 1000
  })
}

data "aws_iam_policy_document" "queue" {
  statement {
    sid       = "OnlyTheBucketSends"
    effect    = "Allow"
    actions   = ["sqs:SendMessage"]
    resources = [aws_sqs_queue.this.arn]

    principals {
      type        = "Service"
      identifiers = ["s3.amazonaws.com"]
    }

    condition {
      test     = "ArnEquals"
      variable = "aws:SourceArn"
      values   = [local.bucket_arn]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.here.account_id]
    }
  }
}

resource "aws_sqs_queue_policy" "this" {
  queue_url = aws_sqs_queue.this.id
  policy    = data.aws_iam_policy_document.queue.json
}

resource "aws_s3_bucket_notification" "this" {
  bucket = var.bucket

  queue {
    queue_arn     = aws_sqs_queue.this.arn
    events        = ["s3:ObjectCreated:*"]
    filter_prefix = var.key_prefix
  }

  # S3 tries the queue when the notification is set.
  depends_on = [aws_sqs_queue_policy.this]
}

data "aws_iam_policy_document" "reader" {
  statement {
    sid    = "ReadTheQueue"
    effect = "Allow"
    actions = [
      "sqs:ReceiveMessage",
      "sqs:DeleteMessage",
      "sqs:ChangeMessageVisibility",
      "sqs:GetQueueAttributes",
    ]
    resources = [aws_sqs_queue.this.arn]
  }

  statement {
    sid       = "ReadTheObjects"
    effect    = "Allow"
    actions   = ["s3:GetObject", "s3:GetObjectVersion"]
    resources = ["${local.bucket_arn}/*"]
  }

  statement {
    sid       = "TellMissingKeysFromRefusedOnes"
    effect    = "Allow"
    actions   = ["s3:ListBucket"]
    resources = [local.bucket_arn]
  }

  dynamic "statement" {
    for_each = var.kms_key_arn == "" ? [] : [var.kms_key_arn]

    content {
      sid       = "DecryptObjects"
      effect    = "Allow"
      actions   = ["kms:Decrypt"]
      resources = [statement.value]
    }
  }
}

resource "aws_iam_policy" "reader" {
  name        = "${var.name}-reader"
  description = "What penstock needs to read the queue and the objects."
  policy      = data.aws_iam_policy_document.reader.json
}

output "queue_url" {
  description = "The queue_url of the source."
  value       = aws_sqs_queue.this.id
}

output "reader_policy_arn" {
  description = "To attach to the user or role that penstock uses."
  value       = aws_iam_policy.reader.arn
}
