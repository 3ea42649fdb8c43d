"""Steps of a random walk, by those who take them."""
