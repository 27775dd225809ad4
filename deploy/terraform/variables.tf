variable "name" {
  description = "Name of the service; part of the names of everything made here."
  type        = string
}

variable "image" {
  description = "The image of Vestibule, with a tag or a digest."
  type        = string
}

variable "backend_container" {
  description = "The backend's container definition, unchanged from its task definition. The module removes its published ports and the provider's secrets."
  type        = any
}

variable "backend_port" {
  description = "Where the backend listens. It should listen on 127.0.0.1."
  type        = number
}

variable "provider_secret_names" {
  description = "Environment variables of the backend that hold the identity provider's secrets. The module removes them from its container: it no longer needs them, and the code that it runs could read them."
  type        = list(string)
  default     = ["CLERK_SECRET_KEY", "SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_JWT_SECRET", "AUTH0_CLIENT_SECRET"]
}

variable "issuer" {
  description = "The iss of your tokens, exactly."
  type        = string
}

variable "preset" {
  description = "oidc, clerk, supabase, auth0, cognito, keycloak, entra or google."
  type        = string
  default     = "oidc"
}

variable "audience" {
  description = "Whom the tokens are for; null where the preset fixes it (clerk, supabase)."
  type        = string
  default     = null
}

variable "origins" {
  description = "Your front ends, such as https://app.example.com."
  type        = list(string)
  default     = []
}

variable "trusted_proxies" {
  description = "Peers whose X-Forwarded-* fields are used: the subnets of the load balancer, or private_ranges."
  type        = list(string)
  default     = ["private_ranges"]
}

variable "public_paths" {
  description = "Paths that need no token."
  type        = list(string)
  default     = ["/health"]
}

variable "more_configuration" {
  description = "Further keys of the configuration (docs/configuration.md), merged over what this module writes."
  type        = any
  default     = {}
}

variable "backend_credential" {
  description = "The backend's own secret: the header in which it expects it, the ARN of the secret, and the environment variable from which the backend reads it. Both containers get it. null: none; `vestibule doctor` then reports that the backend is open to the code in the task."
  type = object({
    header     = string
    secret_arn = string
    variable   = optional(string, "BACKEND_SECRET")
  })
  default   = null
  sensitive = true
}

variable "secrets" {
  description = "Environment variable => ARN in Secrets Manager, for Vestibule alone; the configuration names them as $${NAME}."
  type        = map(string)
  default     = {}
  sensitive   = true
}

variable "shared" {
  description = "The engine of the shared state, for several tasks: its address (rediss://host:6379), the user and the ARN of the password's secret. They need a session secret too: browser.session.secret in more_configuration. null: none."
  type = object({
    url                 = string
    username            = string
    password_secret_arn = string
    # Writes the password into a file before Vestibule starts. It needs sh, printf and chown.
    writer_image = optional(string, "public.ecr.aws/docker/library/busybox:1.37")
  })
  default = null
}

variable "more_containers" {
  description = "Further containers of the task, such as an agent for logs, as container definitions."
  type        = any
  default     = []
}

variable "volumes" {
  description = "Volumes of the task. Containers name them in mountPoints. With efs_file_system_id the volume is on EFS, otherwise it lives as long as the task."
  type = list(object({
    name                = string
    efs_file_system_id  = optional(string)
    efs_access_point_id = optional(string)
    root_directory      = optional(string, "/")
  }))
  default = []
}

variable "cpu" {
  description = "CPU units of Vestibule."
  type        = number
  default     = 64
}

variable "memory" {
  description = "Memory of Vestibule in MiB."
  type        = number
  default     = 64
}

variable "task" {
  description = "What the task as a whole needs, as in its task definition now."
  type = object({
    cpu                = number
    memory             = number
    execution_role_arn = string
    task_role_arn      = optional(string)
    architecture       = optional(string, "ARM64")
  })
}

variable "log_group" {
  description = "The CloudWatch log group."
  type        = string
}

variable "region" {
  description = "The region of the log group."
  type        = string
}

variable "vpc_id" {
  description = "The VPC of the load balancer."
  type        = string
}

variable "load_balancer_arn" {
  description = "The load balancer. The module checks its idle timeout and reads its security groups."
  type        = string
}

variable "listener_arn" {
  description = "The listener that gets the rule; null: you forward to the target group yourself."
  type        = string
  default     = null
}

variable "listener_hosts" {
  description = "Host names of the rule."
  type        = list(string)
  default     = []
}

variable "listener_priority" {
  description = "Priority of the rule."
  type        = number
  default     = 100
}

variable "former_target_group_arn" {
  description = "The target group that has the traffic today. The listener rule divides the traffic between it and Vestibule by `weight`. null: Vestibule gets all of it."
  type        = string
  default     = null
}

variable "weight" {
  description = "The share of the traffic that goes through Vestibule while former_target_group_arn is set: 0 to 100."
  type        = number
  default     = 0

  validation {
    condition     = var.weight >= 0 && var.weight <= 100
    error_message = "The weight is a number from 0 to 100."
  }
}

variable "task_security_group_id" {
  description = "The security group of the tasks. The module allows Vestibule's port from the security groups of the load balancer. null: you allow it yourself."
  type        = string
  default     = null
}

variable "health_check_path" {
  description = "The path that the load balancer requests. /.vestibule/readyz checks Vestibule; a path of the backend that is in public_paths checks both."
  type        = string
  default     = "/.vestibule/readyz"
}

variable "stickiness" {
  description = "Stickiness within the target group, as your target group has it now: { type, cookie_duration }; null: none."
  type = object({
    type            = string
    cookie_duration = number
  })
  default = null
}
