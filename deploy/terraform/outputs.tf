output "task_definition_arn" {
  description = "For task_definition of your aws_ecs_service."
  value       = aws_ecs_task_definition.this.arn
}

output "target_group_arn" {
  description = "For load_balancer.target_group_arn of your aws_ecs_service."
  value       = aws_lb_target_group.this.arn
}

output "container_name" {
  description = "For load_balancer.container_name."
  value       = "vestibule"
}

output "container_port" {
  description = "For load_balancer.container_port."
  value       = local.port
}

output "listener_rule_arn" {
  description = "The listener rule, if the module makes one."
  value       = one(aws_lb_listener_rule.this[*].arn)
}
