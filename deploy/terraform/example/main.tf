# Vestibule in front of an existing service. The former service keeps running until all traffic has moved.

module "vestibule" {
  source = "../"

  name               = "notebook"
  image              = var.vestibule_image
  issuer             = "https://clerk.example.com"
  preset             = "clerk"
  origins            = ["https://app.example.com"]
  backend_port       = 8000
  backend_credential = var.backend_credential
  log_group          = "/ecs/notebook"
  region             = "eu-central-1"
  vpc_id             = var.vpc_id
  load_balancer_arn  = var.load_balancer_arn
  listener_arn       = var.listener_arn
  listener_hosts     = ["notebook.example.com"]

  # The cut-over: raise the weight in steps, and lower it to go back.
  former_target_group_arn = var.former_target_group_arn
  weight                  = var.weight
  task_security_group_id  = var.security_groups[0]

  task = {
    cpu                = 512
    memory             = 1024
    execution_role_arn = var.execution_role_arn
  }

  backend_container = {
    name    = "backend"
    image   = "111122223333.dkr.ecr.eu-central-1.amazonaws.com/notebook:1"
    command = ["uvicorn", "app:app", "--host", "127.0.0.1", "--port", "8000"]
  }
}

# A second service. ECS accepts its target group only once a listener rule uses it: hence depends_on.
resource "aws_ecs_service" "notebook" {
  name            = "notebook-vestibule"
  cluster         = var.cluster_arn
  launch_type     = "FARGATE"
  desired_count   = 1
  task_definition = module.vestibule.task_definition_arn

  health_check_grace_period_seconds = 60
  enable_execute_command            = true

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  load_balancer {
    target_group_arn = module.vestibule.target_group_arn
    container_name   = module.vestibule.container_name
    container_port   = module.vestibule.container_port
  }

  network_configuration {
    subnets         = var.subnets
    security_groups = var.security_groups
  }

  depends_on = [module.vestibule]

  lifecycle {
    ignore_changes = [desired_count]
  }
}

variable "vestibule_image" { type = string }
variable "vpc_id" { type = string }
variable "load_balancer_arn" { type = string }
variable "listener_arn" { type = string }
variable "execution_role_arn" { type = string }
variable "cluster_arn" { type = string }
variable "subnets" { type = list(string) }
variable "security_groups" { type = list(string) }

variable "former_target_group_arn" { type = string }

variable "weight" {
  type    = number
  default = 0
}

variable "backend_credential" {
  type = object({
    header     = string
    secret_arn = string
  })
  sensitive = true
}
