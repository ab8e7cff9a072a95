"""What the viewer is made of: who may use it, what becomes of uploads, the pictures, and the page itself (Streamlit)."""
