"""What makes a network quick on the machine at hand: precision, compiled blocks, modulations ahead, features reused."""
