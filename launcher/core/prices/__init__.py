"""What an hour costs where, and what comes on top: list prices, discounts, inventory, egress, hired supervisors."""
